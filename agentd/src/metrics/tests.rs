use std::collections::{BTreeMap, BTreeSet};

use muster_api::usage::Counts;

use super::*;

/// What a line says: its name, its labels and its value.
type Line = (String, BTreeMap<String, String>, f64);

/// Reads the text strictly, as the format (version 0.0.4) describes it: families with one type each, lines of one family together, no line
/// twice.
fn parse(text: &str) -> Vec<Line> {
    let (mut lines, mut seen, mut family) = (Vec::new(), BTreeSet::new(), String::new());
    let mut families = BTreeSet::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            match what {
                "HELP" => {
                    assert!(families.insert(name.to_owned()), "{name} is there twice");
                    family = name.to_owned();
                }
                "TYPE" => assert!(name == family && ["counter", "gauge"].contains(&rest), "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (head, value) = line.rsplit_once(' ').expect(line);
        let (name, labels) = match head.split_once('{') {
            Some((name, rest)) => (name, labels(rest.strip_suffix('}').expect(line))),
            None => (head, BTreeMap::new()),
        };
        assert_eq!(name, family, "{line}");
        let well = |c: char| c.is_ascii_alphanumeric() || c == '_';
        assert!(
            name.chars().all(well) && !name.starts_with(|c: char| c.is_ascii_digit()),
            "{line}"
        );
        assert!(seen.insert(head.to_owned()), "{line} is there twice");
        lines.push((name.to_owned(), labels, value.parse().expect(line)));
    }
    lines
}

fn labels(mut text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    while !text.is_empty() {
        let (name, rest) = text.split_once("=\"").expect(text);
        let (mut value, mut chars) = (String::new(), rest.char_indices());
        let end = loop {
            match chars.next().expect("the value ends") {
                (_, '\\') => value.push(match chars.next().expect("something is escaped").1 {
                    'n' => '\n',
                    other => other,
                }),
                (at, '"') => break at,
                (_, other) => value.push(other),
            }
        };
        assert!(labels.insert(name.to_owned(), value).is_none(), "{name} is there twice");
        text = &rest[end + 1..];
        text = text.strip_prefix(',').unwrap_or(text);
    }
    labels
}

fn usage() -> AgentUsage {
    let task = TaskUsage {
        namespace: "ml".to_owned(),
        task: "train".to_owned(),
        framework: "default".to_owned(),
        attempt: 3,
        devices: vec!["GPU-a".to_owned()],
        usage: Usage {
            cpu_time_us: Some(2_500_000),
            memory_bytes: Some(1 << 20),
            pids: Some(7),
            ..Usage::default()
        },
    };
    let gpu = GpuUsage {
        uuid: "GPU-a".to_owned(),
        model: "NVIDIA \"H100\"".to_owned(),
        health: "Healthy".to_owned(),
        task: Some(("ml".to_owned(), "train".to_owned())),
        reading: GpuReading {
            temperature: Some(64),
            power_milliwatts: Some(672_500),
            utilization: Some(98),
            memory_used_bytes: Some(71 << 30),
            memory_free_bytes: Some(8 << 30),
            ecc_volatile: Counts {
                corrected: Some(2),
                uncorrected: Some(0),
            },
            throttle_reasons: Some(4),
            last_xid: Some(0),
            ..GpuReading::default()
        },
        ..GpuUsage::default()
    };
    let idle = GpuUsage {
        uuid: "GPU-b".to_owned(),
        index: 1,
        health: "Cordoned".to_owned(),
        ..GpuUsage::default()
    };
    AgentUsage {
        tasks: vec![task],
        gpus: vec![gpu, idle],
        ..AgentUsage::default()
    }
}

#[test]
fn the_text_is_what_prometheus_reads() {
    let lines = parse(&text("a1", &usage()));
    let value = |name: &str, label: (&str, &str)| {
        let found = |(known, labels, _): &&Line| known == name && labels.get(label.0).is_some_and(|v| v == label.1);
        lines.iter().find(found).map(|(_, _, value)| *value)
    };
    let of_task = ("task", "train");
    assert_eq!(value("muster_task_cpu_seconds_total", of_task), Some(2.5));
    assert_eq!(
        value("muster_task_memory_working_set_bytes", of_task),
        Some(1_048_576.0)
    );
    assert_eq!(value("muster_task_restarts_total", of_task), Some(2.0));
    assert_eq!(
        value("muster_task_oom_kills_total", of_task),
        None,
        "nobody counts them"
    );
    assert_eq!(value("muster_gpu_power_watts", ("uuid", "GPU-a")), Some(672.5));
    assert_eq!(
        value("muster_gpu_utilization_ratio", ("model", "NVIDIA \"H100\"")),
        Some(0.98)
    );
    assert_eq!(value("muster_gpu_throttled", ("reason", "power-cap")), Some(1.0));
    assert_eq!(
        value("muster_gpu_temperature_celsius", ("uuid", "GPU-b")),
        None,
        "it is not known"
    );
    let cordoned = lines.iter().filter(|(name, labels, value)| {
        name == "muster_gpu_health" && labels["state"] == "Cordoned" && labels["uuid"] == "GPU-b" && *value == 1.0
    });
    assert_eq!(cordoned.count(), 1);
}

#[test]
fn gpus_have_the_names_units_and_labels_of_the_usual_exporter_too() {
    let lines = parse(&text("a1", &usage()));
    let found = |name: &str| {
        lines
            .iter()
            .find(|(known, ..)| known == name)
            .unwrap_or_else(|| panic!("{name}"))
    };
    for (name, value) in [
        ("DCGM_FI_DEV_GPU_TEMP", 64.0),
        ("DCGM_FI_DEV_POWER_USAGE", 672.5),
        ("DCGM_FI_DEV_GPU_UTIL", 98.0),
        ("DCGM_FI_DEV_FB_USED", 72_704.0),
        ("DCGM_FI_DEV_FB_FREE", 8_192.0),
        ("DCGM_FI_DEV_XID_ERRORS", 0.0),
        ("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", 2.0),
        ("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", 0.0),
    ] {
        let (_, labels, is) = found(name);
        assert_eq!(*is, value, "{name}");
        for (label, value) in [
            ("gpu", "0"),
            ("UUID", "GPU-a"),
            ("device", "nvidia0"),
            ("modelName", "NVIDIA \"H100\""),
            ("Hostname", "a1"),
            ("namespace", "ml"),
            ("pod", "train"),
            ("container", "train"),
        ] {
            assert_eq!(labels[label], value, "{name}: {label}");
        }
    }
}

#[test]
fn a_machine_of_which_nothing_is_known_has_nearly_no_lines() {
    let lines = parse(&text("a1", &AgentUsage::default()));
    let names: Vec<&str> = lines.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["muster_tasks_left_out"]);
}
