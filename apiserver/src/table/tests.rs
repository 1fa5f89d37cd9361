use super::*;
use crate::kinds;

fn now() -> Timestamp {
    "2026-03-01T12:00:00Z".parse().unwrap()
}

fn look(include: Include) -> Look<'static> {
    Look {
        version: VERSION,
        include,
        now: now(),
    }
}

fn printer(kind: &str) -> Printer {
    let all = kinds::resources();
    Printer::new(all.iter().find(|resource| resource.kind == kind).unwrap())
}

fn read(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

fn task() -> Value {
    json!({
        "apiVersion": "muster.dev/v1", "kind": "Task",
        "metadata": {"name": "t", "namespace": "d", "resourceVersion": "7", "creationTimestamp": "2026-03-01T11:55:00Z"},
        "spec": {"resources": {"cpus": "0.5", "memory": "64Mi", "gpus": 1}, "framework": "default"},
        "status": {"phase": "Running", "exitCode": 0, "ports": ["31000-31001", 31005]},
    })
}

#[test]
fn ages_are_told_as_kubectl_does() {
    let minute = 60;
    let (hour, day) = (60 * minute, 24 * 60 * minute);
    for (seconds, text) in [
        (-2, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (9 * minute + 59, "9m59s"),
        (10 * minute + 30, "10m"),
        (179 * minute, "179m"),
        (3 * hour, "3h"),
        (7 * hour + 5 * minute, "7h5m"),
        (8 * hour + 5 * minute, "8h"),
        (47 * hour, "47h"),
        (2 * day, "2d"),
        (7 * day + 3 * hour, "7d3h"),
        (8 * day + 3 * hour, "8d"),
        (729 * day, "729d"),
        (2 * 365 * day, "2y"),
        (3 * 365 * day + 4 * day, "3y4d"),
        (8 * 365 * day + 4 * day, "8y"),
    ] {
        assert_eq!(human_duration(seconds), text, "{seconds}");
    }
}

#[test]
fn a_row_has_a_cell_for_each_column() {
    let table = read(&printer("Task").table(&look(Include::Metadata), &json!({"resourceVersion": "9"}), [&task()]));
    assert_eq!(table["kind"], "Table");
    assert_eq!(table["apiVersion"], "meta.k8s.io/v1");
    assert_eq!(table["metadata"]["resourceVersion"], "9");
    assert_eq!(table["columnDefinitions"][0]["name"], "Name");
    assert_eq!(table["columnDefinitions"][0]["format"], "name");
    let cells = &table["rows"][0]["cells"];
    assert_eq!(
        *cells,
        json!([
            "t", "Running", null, null, "0.5", "64Mi", "1", 0, "5m", "default", null, null
        ])
    );
    assert_eq!(
        cells.as_array().unwrap().len(),
        table["columnDefinitions"].as_array().unwrap().len()
    );
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    assert_eq!(table["rows"][0]["object"]["metadata"]["name"], "t");
    assert!(table["rows"][0]["object"].get("spec").is_none());
}

#[test]
fn the_object_comes_along_as_asked() {
    let rows = |include| {
        let look = Look {
            version: "meta.k8s.io/v1beta1",
            ..look(include)
        };
        let table = read(&printer("Task").table(&look, &json!({}), [&task(), &task()]));
        assert_eq!(table["rows"].as_array().unwrap().len(), 2);
        table["rows"][1].clone()
    };
    assert!(rows(Include::None).get("object").is_none());
    assert_eq!(rows(Include::Metadata)["object"]["apiVersion"], "meta.k8s.io/v1beta1");
    assert_eq!(rows(Include::Object)["object"], task());
    assert_eq!(Include::parse(Some("Object")), Ok(Include::Object));
    assert_eq!(Include::parse(None), Ok(Include::Metadata));
    assert!(Include::parse(Some("All")).is_err());
}

#[test]
fn anything_can_be_shown() {
    for object in [
        json!({}),
        json!(null),
        json!([1]),
        json!({"metadata": 7, "status": [], "spec": {"resources": "x"}}),
    ] {
        for kind in ["Task", "Agent", "Event", "ConfigMap"] {
            let mut out = Vec::new();
            printer(kind).single(&look(Include::Metadata), &object, false, true, &mut out);
            assert_eq!(read(&out)["rows"].as_array().unwrap().len(), 1, "{object}");
        }
    }
}

#[test]
fn a_bookmark_is_a_table_without_rows() {
    let mut out = Vec::new();
    let bookmark = json!({"kind": "Task", "apiVersion": "muster.dev/v1", "metadata": {"resourceVersion": "12"}});
    printer("Task").single(&look(Include::Metadata), &bookmark, true, false, &mut out);
    let table = read(&out);
    assert_eq!(table["metadata"]["resourceVersion"], "12");
    assert_eq!(table["rows"], json!([]));
    assert_eq!(table["columnDefinitions"], json!([]));
}

#[test]
fn other_kinds_show_what_their_readers_look_for() {
    let cells = |kind: &str, object: Value| {
        let mut out = Vec::new();
        printer(kind).single(&look(Include::None), &object, false, true, &mut out);
        read(&out)["rows"][0]["cells"].clone()
    };
    let created = json!("2026-03-01T10:00:00Z");
    let map = json!({"metadata": {"name": "m", "creationTimestamp": created}, "data": {"a": "", "b": ""}, "binaryData": {"c": ""}});
    assert_eq!(cells("ConfigMap", map), json!(["m", 3, "120m"]));
    let agent = json!({
        "metadata": {"name": "a1", "creationTimestamp": created},
        "status": {"conditions": [{"type": "Isolated", "status": "False"}, {"type": "Ready", "status": "True"}], "capacity": {"cpus": 4, "gpus": 8}},
    });
    assert_eq!(
        cells("Agent", agent),
        json!(["a1", "True", "4", null, 8, null, null, "120m", null, null])
    );
    let event = json!({
        "metadata": {"name": "t.1", "creationTimestamp": created},
        "involvedObject": {"kind": "Task", "name": "t"}, "type": "Normal", "reason": "Started", "message": "it runs",
        "lastTimestamp": null, "eventTime": "2026-03-01T11:59:00.000000Z", "source": {"component": "agentd"},
    });
    let all = kinds::resources();
    let core = all
        .iter()
        .find(|resource| resource.kind == "Event" && resource.group.is_empty())
        .unwrap();
    let table = read(&Printer::new(core).table(&look(Include::None), &json!({}), [&event]));
    assert_eq!(
        table["rows"][0]["cells"],
        json!([
            "60s", "Normal", "Started", "Task/t", "agentd", "it runs", "60s", null, "t.1"
        ])
    );
    assert_eq!(table["columnDefinitions"][8]["format"], "name");
}

#[test]
fn paths_reach_fields_items_and_matches() {
    let object = json!({
        "a": {"b.c": 1, "list": [{"type": "x", "value": "1"}, {"type": "y", "value": "2"}], "ports": ["1-2", 5]},
        "n": null, "on": true,
    });
    let check = |path: &str, expect: Option<Value>| assert_eq!(Cell::parse(path).read(&object), expect, "{path}");
    check(".a['b.c']", Some(json!(1)));
    check(".a.b\\.c", Some(json!(1)));
    check(".a.list[0].value", Some(json!("1")));
    check(".a.list[-1].value", Some(json!("2")));
    check(".a.list[-3].value", None);
    check(".a.list[*].value", Some(json!(["1", "2"])));
    check(".a.list[?(@.type==\"y\")].value", Some(json!("2")));
    check(".a.list[?(@.type=='z')].value", None);
    check(".on", Some(json!(true)));
    check(".n", None);
    check(".n|.missing|.on", Some(json!(true)));
    check("{.a.list[0].type}-{.missing}!", Some(json!("x-!")));
    check("#.a.list #.missing #.a", Some(json!(5)));
    for broken in ["", ".", "..", "[", "[?(", "a[b", "]", ".a[?(@.x=1)]", "{", "#"] {
        let _ = Cell::parse(broken).read(&object);
    }
    assert_eq!(path::text(&object["a"]["ports"]), "1-2,5");
}
