//! What `--gpus` says, and the devices that come of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use muster_api::device::Device;
use muster_api::env::Env;

use super::cdi::{self, Spec};
use super::{
    DeviceSource, Edits, NoDevices, NoGpus, NvmlConfig, NvmlDevices, SimulatedDevices, SimulationError, UnknownDevice,
};

/// Which devices an agent gives out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GpuChoice {
    /// NVIDIA's, when the machine has them: `auto`.
    #[default]
    Auto,
    /// None: `none`.
    None,
    /// NVIDIA's, by their driver's library, which has to be there: `nvml`, or `nvml:PATH` for a library in an unusual place.
    Nvml(Option<PathBuf>),
    /// Those of a kind that a vendor's CDI specification describes: `cdi:amd.com/gpu`.
    Cdi(String),
    /// Simulated ones: `sim:8xH100`.
    Simulated(String),
}

/// The text is none of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a choice of GPUs; write auto, none, nvml, cdi:VENDOR/CLASS such as cdi:amd.com/gpu, or sim:8xH100"
)]
pub struct ChoiceError(String);

impl FromStr for GpuChoice {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<GpuChoice, ChoiceError> {
        match (text, text.split_once(':')) {
            ("auto", _) => Ok(GpuChoice::Auto),
            ("none", _) => Ok(GpuChoice::None),
            ("nvml", _) => Ok(GpuChoice::Nvml(None)),
            (_, Some(("nvml", path))) if path.starts_with('/') => Ok(GpuChoice::Nvml(Some(path.into()))),
            (_, Some(("cdi", kind))) if kind.contains('/') => Ok(GpuChoice::Cdi(kind.to_owned())),
            (_, Some(("sim", machine))) => Ok(GpuChoice::Simulated(machine.to_owned())),
            _ => Err(ChoiceError(text.chars().take(64).collect())),
        }
    }
}

/// Why the devices that were asked for are not there.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Simulated ones, described wrongly.
    #[error(transparent)]
    Simulation(#[from] SimulationError),
    /// NVIDIA's were asked for by name.
    #[error("the GPUs of NVIDIA that --gpus asks for are not there")]
    Nvml(#[from] NoGpus),
    /// No specification describes the kind.
    #[error("no CDI specification in /etc/cdi or /var/run/cdi describes devices of the kind {kind}{unused}")]
    Cdi {
        /// The kind.
        kind: String,
        /// What could not be used, if anything.
        unused: String,
    },
}

impl GpuChoice {
    /// Opens them. `state` is the agent's directory, for what has to outlive it; the verdicts there hold for one boot.
    ///
    /// # Errors
    /// [`OpenError`]: what was asked for is not there. `auto` never fails.
    pub fn open(
        &self,
        agent: &str,
        state: &Path,
        boot_id: &str,
        env: &Arc<dyn Env>,
    ) -> Result<Arc<dyn DeviceSource>, OpenError> {
        let nvml = |library: Option<&PathBuf>| {
            let mut config = NvmlConfig::new(state, boot_id);
            if let Some(library) = library {
                library.clone_into(&mut config.library);
            }
            NvmlDevices::open(config, Arc::clone(env))
        };
        match self {
            GpuChoice::None => Ok(Arc::new(NoDevices)),
            GpuChoice::Simulated(text) => Ok(Arc::new(SimulatedDevices::parse(text, agent)?)),
            GpuChoice::Nvml(library) => Ok(Arc::new(nvml(library.as_ref())?)),
            GpuChoice::Auto => match nvml(None) {
                Ok(devices) => Ok(Arc::new(devices)),
                Err(why) => {
                    tracing::info!(%why, "no GPUs of NVIDIA on this machine");
                    Ok(Arc::new(NoDevices))
                }
            },
            GpuChoice::Cdi(kind) => {
                let (specs, errors) = cdi::read(&cdi::DIRECTORIES.map(PathBuf::from));
                let devices = CdiDevices::of(kind, agent, specs.into_values());
                devices
                    .map(|devices| Arc::new(devices) as Arc<dyn DeviceSource>)
                    .ok_or_else(|| OpenError::Cdi {
                        kind: kind.clone(),
                        unused: errors.iter().map(|error| format!("; {error}")).collect(),
                    })
            }
        }
    }
}

/// Devices that a vendor's specification describes. What it does not tell (model, memory) is not known; their health is not watched.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CdiDevices {
    spec: Spec,
    /// The device's name in the specification, by the UUID that the cluster knows it by.
    names: BTreeMap<String, String>,
}

impl CdiDevices {
    /// The devices of the last specification of the kind. Names count within a machine only, so the agent's becomes part of them. `all` and
    /// other devices that stand for several are left out: each device is given out once.
    fn of(kind: &str, agent: &str, specs: impl Iterator<Item = Spec>) -> Option<CdiDevices> {
        let spec = specs.filter(|spec| spec.kind == kind).last()?;
        let names = spec.devices.iter().filter(|device| device.name != "all");
        let uuid = |name: &str| format!("{}-{agent}-{name}", kind.replace(['/', '.'], "-"));
        Some(CdiDevices {
            names: names.map(|device| (uuid(&device.name), device.name.clone())).collect(),
            spec,
        })
    }
}

impl DeviceSource for CdiDevices {
    fn discover(&self) -> Vec<Device> {
        let device = |uuid: &String| Device {
            uuid: uuid.clone(),
            model: self.spec.kind.clone(),
            ..Device::default()
        };
        self.names.keys().map(device).collect()
    }

    fn edits(&self, uuids: &[&str]) -> Result<Edits, UnknownDevice> {
        let name = |uuid: &&str| {
            self.names
                .get(*uuid)
                .map(String::as_str)
                .ok_or_else(|| UnknownDevice((*uuid).to_owned()))
        };
        let names = uuids.iter().map(name).collect::<Result<Vec<&str>, UnknownDevice>>()?;
        let mut edits = self.spec.edits(&names).map_err(|name| UnknownDevice(name.to_owned()))?;
        if !uuids.is_empty() {
            edits.env.insert("MUSTER_GPUS".to_owned(), uuids.join(","));
        }
        Ok(edits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read() {
        let read = |text: &str| text.parse::<GpuChoice>().ok();
        assert_eq!(read("auto"), Some(GpuChoice::Auto));
        assert_eq!(read("none"), Some(GpuChoice::None));
        assert_eq!(read("nvml"), Some(GpuChoice::Nvml(None)));
        assert_eq!(
            read("nvml:/opt/ml.so"),
            Some(GpuChoice::Nvml(Some("/opt/ml.so".into())))
        );
        assert_eq!(read("cdi:amd.com/gpu"), Some(GpuChoice::Cdi("amd.com/gpu".to_owned())));
        assert_eq!(read("sim:8xH100"), Some(GpuChoice::Simulated("8xH100".to_owned())));
        for wrong in ["", "8xH100", "nvml:relative", "cdi:gpu", "SIM:1xT4"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn devices_of_a_vendor_are_known_by_the_agent_and_their_name() {
        let text = "{cdiVersion: '0.6.0', kind: amd.com/gpu, devices: [
            {name: '0', containerEdits: {deviceNodes: [{path: /dev/dri/renderD128}]}},
            {name: all, containerEdits: {deviceNodes: [{path: /dev/dri/renderD128}]}}]}";
        let spec = Spec::parse(Path::new("/etc/cdi/amd.yaml"), text).expect("well-formed");
        assert_eq!(CdiDevices::of("intel.com/gpu", "a1", [spec.clone()].into_iter()), None);
        let devices = CdiDevices::of("amd.com/gpu", "a1", [spec].into_iter()).expect("it is described");
        let found = devices.discover();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].uuid, "amd-com-gpu-a1-0");
        let edits = devices.edits(&["amd-com-gpu-a1-0"]).expect("it is here");
        assert_eq!(edits.devices[0].path, Path::new("/dev/dri/renderD128"));
        assert_eq!(edits.env["MUSTER_GPUS"], "amd-com-gpu-a1-0");
        assert!(devices.edits(&["0"]).is_err());
    }
}
