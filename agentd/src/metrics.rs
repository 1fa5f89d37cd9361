//! What is used here in the text format of Prometheus (version 0.0.4). Pure.
//!
//! Tasks and GPUs under names of our own, in base units; and GPUs once more under the names, units and labels of NVIDIA's exporter
//! (dcgm-exporter), so that dashboards made for that one work. It promises: a label has no more values than there are tasks that run here
//! (at most [`TASKS_MEASURED`](crate::limits::TASKS_MEASURED)) and GPUs; what is not known has no line, since a zero would be a lie.

use std::fmt::Write as _;

use muster_api::usage::{AgentUsage, GpuReading, GpuUsage, TaskUsage, Usage};

/// What the text is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Everything, as text.
pub fn text(agent: &str, usage: &AgentUsage) -> String {
    let mut out = Text::default();
    machine(&mut out, &usage.machine);
    tasks(&mut out, usage);
    gpus(&mut out, &usage.gpus);
    dcgm(&mut out, agent, &usage.gpus);
    out.0
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

type Labels = Vec<(&'static str, String)>;

#[derive(Default)]
struct Text(String);

impl Text {
    /// A family: its lines, unless it has none.
    fn family(&mut self, name: &str, kind: Kind, help: &str, lines: impl IntoIterator<Item = (Labels, Option<f64>)>) {
        let mut lines = lines
            .into_iter()
            .filter_map(|(labels, value)| Some((labels, value?)))
            .peekable();
        if lines.peek().is_none() {
            return;
        }
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        self.put(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        for (labels, value) in lines {
            let labels: Vec<String> = labels
                .iter()
                .map(|(label, value)| format!("{label}=\"{}\"", escape(value)))
                .collect();
            if labels.is_empty() {
                self.put(format_args!("{name} {value}\n"));
            } else {
                self.put(format_args!("{name}{{{}}} {value}\n", labels.join(",")));
            }
        }
    }

    fn put(&mut self, text: std::fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("memory takes text");
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[expect(clippy::cast_precision_loss, reason = "what is larger than 2^53 needs no last digit")]
fn number(value: u64) -> f64 {
    value as f64
}

fn machine(out: &mut Text, usage: &Usage) {
    let one = |value: Option<f64>| [(Labels::new(), value)];
    let seconds = usage.cpu_time_us.map(|us| number(us) / 1e6);
    let name = "muster_machine_cpu_seconds_total";
    out.family(name, Kind::Counter, "CPU time of the whole machine", one(seconds));
    let name = "muster_machine_memory_used_bytes";
    out.family(
        name,
        Kind::Gauge,
        "Memory in use on the whole machine",
        one(usage.memory_bytes.map(number)),
    );
    let name = "muster_machine_memory_bytes";
    out.family(
        name,
        Kind::Gauge,
        "Memory of the machine",
        one(usage.memory_limit_bytes.map(number)),
    );
}

fn tasks(out: &mut Text, usage: &AgentUsage) {
    let labels = |task: &TaskUsage| -> Labels {
        vec![
            ("namespace", task.namespace.clone()),
            ("task", task.task.clone()),
            ("framework", task.framework.clone()),
        ]
    };
    let mut family = |name: &str, kind, help: &str, value: &dyn Fn(&TaskUsage) -> Option<f64>| {
        let lines = usage.tasks.iter().map(|task| (labels(task), value(task)));
        out.family(&format!("muster_task_{name}"), kind, help, lines);
    };
    let (counter, gauge) = (Kind::Counter, Kind::Gauge);
    family(
        "cpu_seconds_total",
        counter,
        "CPU time of the task's attempt",
        &|task| task.usage.cpu_time_us.map(|us| number(us) / 1e6),
    );
    let help = "Memory of the task without files that were not used for a while";
    family("memory_working_set_bytes", gauge, help, &|task| {
        task.usage.memory_bytes.map(number)
    });
    family("memory_limit_bytes", gauge, "Memory that the task may have", &|task| {
        task.usage.memory_limit_bytes.map(number)
    });
    family("pids", gauge, "Processes and threads of the task", &|task| {
        task.usage.pids.map(number)
    });
    let help = "How often the task's command was run again";
    family("restarts_total", counter, help, &|task| {
        Some(f64::from(task.attempt.saturating_sub(1)))
    });
    let help = "Processes of the task's attempt that were killed for memory";
    family("oom_kills_total", counter, help, &|task| {
        task.usage.oom_kills.map(number)
    });
    family("gpus", gauge, "GPUs that the task has", &|task| {
        Some(number(task.devices.len() as u64))
    });
    let left_out = number(usage.tasks_left_out as u64);
    let help = "Tasks that run here and have no lines, because there are too many";
    out.family("muster_tasks_left_out", gauge, help, [(Labels::new(), Some(left_out))]);
}

fn holder(gpu: &GpuUsage) -> (String, String) {
    gpu.task.clone().unwrap_or_default()
}

fn of_gpu(gpu: &GpuUsage, more: &[(&'static str, &str)]) -> Labels {
    let (namespace, task) = holder(gpu);
    let own = [
        ("gpu", gpu.index.to_string()),
        ("uuid", gpu.uuid.clone()),
        ("model", gpu.model.clone()),
        ("namespace", namespace),
        ("task", task),
    ];
    let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
    own.into_iter().chain(more).collect()
}

fn gpus(out: &mut Text, gpus: &[GpuUsage]) {
    let mut family = |name: &str, kind, help: &str, value: &dyn Fn(&GpuReading) -> Option<f64>| {
        let lines = gpus.iter().map(|gpu| (of_gpu(gpu, &[]), value(&gpu.reading)));
        out.family(&format!("muster_gpu_{name}"), kind, help, lines);
    };
    let (counter, gauge) = (Kind::Counter, Kind::Gauge);
    let milli = |value: Option<u32>| value.map(|milli| f64::from(milli) / 1000.0);
    let percent = |value: Option<u32>| value.map(|percent| f64::from(percent) / 100.0);
    let flag = |value: Option<bool>| value.map(|holds| f64::from(u8::from(holds)));
    family("temperature_celsius", gauge, "Temperature of the chip", &|gpu| {
        gpu.temperature.map(f64::from)
    });
    let help = "Temperature of the memory";
    family("memory_temperature_celsius", gauge, help, &|gpu| {
        gpu.memory_temperature.map(f64::from)
    });
    family("power_watts", gauge, "Power drawn", &|gpu| milli(gpu.power_milliwatts));
    family("power_limit_watts", gauge, "Power that may be drawn", &|gpu| {
        milli(gpu.power_limit_milliwatts)
    });
    family(
        "energy_joules_total",
        counter,
        "Energy since the driver was loaded",
        &|gpu| gpu.energy_millijoules.map(|mj| number(mj) / 1000.0),
    );
    family(
        "utilization_ratio",
        gauge,
        "Part of the time in which it computed",
        &|gpu| percent(gpu.utilization),
    );
    let help = "Part of the time in which its memory was read or written";
    family("memory_utilization_ratio", gauge, help, &|gpu| {
        percent(gpu.memory_utilization)
    });
    family("memory_used_bytes", gauge, "Memory that programs have", &|gpu| {
        gpu.memory_used_bytes.map(number)
    });
    family("memory_free_bytes", gauge, "Memory that programs can have", &|gpu| {
        gpu.memory_free_bytes.map(number)
    });
    let help = "Packets on the PCI bus that were sent again";
    family("pcie_replays_total", counter, help, &|gpu| {
        gpu.pcie_replays.map(f64::from)
    });
    let help = "Whether rows of memory wait for a reset to be remapped";
    family("remap_pending", gauge, help, &|gpu| flag(gpu.remap_pending));
    family(
        "remap_failed",
        gauge,
        "Whether a row of memory could not be remapped",
        &|gpu| flag(gpu.remap_failed),
    );
    let help = "Whether pages of memory wait for a restart to be retired";
    family("retirement_pending", gauge, help, &|gpu| flag(gpu.retirement_pending));
    family("processes", gauge, "Programs that use it", &|gpu| {
        Some(number(gpu.processes.as_ref()?.len() as u64))
    });
    family(
        "last_xid",
        gauge,
        "Last error that the driver has reported, 0: none",
        &|gpu| gpu.last_xid.map(number),
    );

    let health = ["Healthy", "Suspect", "Cordoned", "Faulty"];
    let states = gpus.iter().flat_map(|gpu| {
        health.map(|state| {
            (
                of_gpu(gpu, &[("state", state)]),
                Some(f64::from(u8::from(gpu.health == state))),
            )
        })
    });
    out.family("muster_gpu_health", gauge, "Whether it is in this state", states);
    let reasons = gpus.iter().flat_map(|gpu| {
        let reasons = gpu.reading.throttling().into_iter();
        reasons.map(|(reason, holds)| (of_gpu(gpu, &[("reason", reason)]), flag(Some(holds))))
    });
    let reasons: Vec<_> = reasons.collect();
    out.family(
        "muster_gpu_throttled",
        gauge,
        "Whether its clocks are low for this reason",
        reasons,
    );
    counts(out, gpus);
}

/// What is counted as corrected and uncorrected.
fn counts(out: &mut Text, gpus: &[GpuUsage]) {
    let mut errors = Vec::new();
    let (mut rows, mut pages) = (Vec::new(), Vec::new());
    for gpu in gpus {
        let GpuReading {
            ecc_volatile,
            ecc_aggregate,
            remapped_rows,
            retired_pages,
            ..
        } = &gpu.reading;
        for (since, counts) in [("driver-load", ecc_volatile), ("manufacture", ecc_aggregate)] {
            for (kind, count) in [("corrected", counts.corrected), ("uncorrected", counts.uncorrected)] {
                errors.push((of_gpu(gpu, &[("kind", kind), ("since", since)]), count.map(number)));
            }
        }
        for (lines, counts) in [(&mut rows, remapped_rows), (&mut pages, retired_pages)] {
            for (kind, count) in [("corrected", counts.corrected), ("uncorrected", counts.uncorrected)] {
                lines.push((of_gpu(gpu, &[("kind", kind)]), count.map(number)));
            }
        }
    }
    out.family(
        "muster_gpu_ecc_errors_total",
        Kind::Counter,
        "Errors of its memory",
        errors,
    );
    let help = "Rows of its memory that spare ones stand in for, by the errors they had";
    out.family("muster_gpu_remapped_rows", Kind::Gauge, help, rows);
    let help = "Pages of its memory that are not used any more, by the errors they had";
    out.family("muster_gpu_retired_pages", Kind::Gauge, help, pages);
}

/// GPUs under the names, units and labels of dcgm-exporter, with the task in the place of the Pod.
fn dcgm(out: &mut Text, agent: &str, gpus: &[GpuUsage]) {
    let labels = |gpu: &GpuUsage| -> Labels {
        let (namespace, task) = holder(gpu);
        vec![
            ("gpu", gpu.index.to_string()),
            ("UUID", gpu.uuid.clone()),
            ("pci_bus_id", gpu.pci_address.clone().unwrap_or_default()),
            ("device", format!("nvidia{}", gpu.index)),
            ("modelName", gpu.model.clone()),
            ("Hostname", agent.to_owned()),
            ("DCGM_FI_DRIVER_VERSION", gpu.driver.clone().unwrap_or_default()),
            ("namespace", namespace),
            ("container", task.clone()),
            ("pod", task),
        ]
    };
    let mut family = |name: &str, kind, help: &str, value: &dyn Fn(&GpuReading) -> Option<f64>| {
        let lines = gpus.iter().map(|gpu| (labels(gpu), value(&gpu.reading)));
        out.family(&format!("DCGM_FI_DEV_{name}"), kind, help, lines);
    };
    let (counter, gauge) = (Kind::Counter, Kind::Gauge);
    let mib = |bytes: Option<u64>| bytes.map(|bytes| number(bytes >> 20));
    let watts = |milli: Option<u32>| milli.map(|milli| f64::from(milli) / 1000.0);
    let flag = |value: Option<bool>| value.map(|holds| f64::from(u8::from(holds)));
    family("SM_CLOCK", gauge, "SM clock (in MHz).", &|gpu| {
        gpu.sm_clock_mhz.map(f64::from)
    });
    family("MEM_CLOCK", gauge, "Memory clock (in MHz).", &|gpu| {
        gpu.memory_clock_mhz.map(f64::from)
    });
    family("MEMORY_TEMP", gauge, "Memory temperature (in C).", &|gpu| {
        gpu.memory_temperature.map(f64::from)
    });
    family("GPU_TEMP", gauge, "GPU temperature (in C).", &|gpu| {
        gpu.temperature.map(f64::from)
    });
    family("POWER_USAGE", gauge, "Power draw (in W).", &|gpu| {
        watts(gpu.power_milliwatts)
    });
    family("POWER_MGMT_LIMIT", gauge, "Power limit (in W).", &|gpu| {
        watts(gpu.power_limit_milliwatts)
    });
    let help = "Total energy consumption since boot (in mJ).";
    family("TOTAL_ENERGY_CONSUMPTION", counter, help, &|gpu| {
        gpu.energy_millijoules.map(number)
    });
    family(
        "PCIE_REPLAY_COUNTER",
        counter,
        "Total number of PCIe retries.",
        &|gpu| gpu.pcie_replays.map(f64::from),
    );
    family("GPU_UTIL", gauge, "GPU utilization (in %).", &|gpu| {
        gpu.utilization.map(f64::from)
    });
    family("MEM_COPY_UTIL", gauge, "Memory utilization (in %).", &|gpu| {
        gpu.memory_utilization.map(f64::from)
    });
    family(
        "XID_ERRORS",
        gauge,
        "Value of the last XID error encountered.",
        &|gpu| gpu.last_xid.map(number),
    );
    family("FB_FREE", gauge, "Framebuffer memory free (in MiB).", &|gpu| {
        mib(gpu.memory_free_bytes)
    });
    family("FB_USED", gauge, "Framebuffer memory used (in MiB).", &|gpu| {
        mib(gpu.memory_used_bytes)
    });
    family("FB_RESERVED", gauge, "Framebuffer memory reserved (in MiB).", &|gpu| {
        mib(gpu.memory_reserved_bytes)
    });
    let help = "Total number of single-bit volatile ECC errors.";
    family("ECC_SBE_VOL_TOTAL", counter, help, &|gpu| {
        gpu.ecc_volatile.corrected.map(number)
    });
    let help = "Total number of double-bit volatile ECC errors.";
    family("ECC_DBE_VOL_TOTAL", counter, help, &|gpu| {
        gpu.ecc_volatile.uncorrected.map(number)
    });
    let help = "Total number of single-bit persistent ECC errors.";
    family("ECC_SBE_AGG_TOTAL", counter, help, &|gpu| {
        gpu.ecc_aggregate.corrected.map(number)
    });
    let help = "Total number of double-bit persistent ECC errors.";
    family("ECC_DBE_AGG_TOTAL", counter, help, &|gpu| {
        gpu.ecc_aggregate.uncorrected.map(number)
    });
    let help = "Total number of retired pages due to single-bit errors.";
    family("RETIRED_SBE", counter, help, &|gpu| {
        gpu.retired_pages.corrected.map(number)
    });
    let help = "Total number of retired pages due to double-bit errors.";
    family("RETIRED_DBE", counter, help, &|gpu| {
        gpu.retired_pages.uncorrected.map(number)
    });
    family(
        "RETIRED_PENDING",
        counter,
        "Whether pages are pending retirement.",
        &|gpu| flag(gpu.retirement_pending),
    );
    let help = "Number of remapped rows for correctable errors.";
    family("CORRECTABLE_REMAPPED_ROWS", counter, help, &|gpu| {
        gpu.remapped_rows.corrected.map(number)
    });
    let help = "Number of remapped rows for uncorrectable errors.";
    family("UNCORRECTABLE_REMAPPED_ROWS", counter, help, &|gpu| {
        gpu.remapped_rows.uncorrected.map(number)
    });
    family(
        "ROW_REMAP_FAILURE",
        gauge,
        "Whether remapping of rows has failed.",
        &|gpu| flag(gpu.remap_failed),
    );
    let help = "Current clock throttle reasons (bitmask).";
    family("CLOCK_THROTTLE_REASONS", gauge, help, &|gpu| {
        gpu.throttle_reasons.map(number)
    });
}

#[cfg(test)]
mod tests;
