//! Objects as other encoders write them, and the same bytes cut and bent.

use muster_protobuf::{Error, MAGIC, decode, knows};
use proptest::prelude::*;
use prost::Message;
use serde_json::{Value, json};

/// Kubernetes' messages, as far as these tests send them, for an encoder that is not ours.
mod sent {
    use std::collections::BTreeMap;

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Unknown {
        #[prost(message, optional, tag = "1")]
        pub(super) type_meta: Option<TypeMeta>,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) raw: Vec<u8>,
        #[prost(string, tag = "3")]
        pub(super) encoding: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct TypeMeta {
        #[prost(string, tag = "1")]
        pub(super) api_version: String,
        #[prost(string, tag = "2")]
        pub(super) kind: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Time {
        #[prost(int64, optional, tag = "1")]
        pub(super) seconds: Option<i64>,
        #[prost(int32, optional, tag = "2")]
        pub(super) nanos: Option<i32>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Meta {
        #[prost(string, optional, tag = "1")]
        pub(super) name: Option<String>,
        #[prost(string, optional, tag = "2")]
        pub(super) generate_name: Option<String>,
        #[prost(message, optional, tag = "8")]
        pub(super) created: Option<Time>,
        #[prost(btree_map = "string, string", tag = "11")]
        pub(super) labels: BTreeMap<String, String>,
        #[prost(string, repeated, tag = "14")]
        pub(super) finalizers: Vec<String>,
        #[prost(message, repeated, tag = "17")]
        pub(super) owners: Vec<Owner>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Owner {
        #[prost(string, tag = "1")]
        pub(super) manager: String,
        #[prost(message, optional, tag = "7")]
        pub(super) fields: Option<Json>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Json {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) raw: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Secret {
        #[prost(message, optional, tag = "1")]
        pub(super) metadata: Option<Meta>,
        #[prost(btree_map = "string, bytes", tag = "2")]
        pub(super) data: BTreeMap<String, Vec<u8>>,
        #[prost(string, tag = "3")]
        pub(super) kind: String,
        #[prost(bool, optional, tag = "5")]
        pub(super) immutable: Option<bool>,
        /// A field that nobody knows.
        #[prost(string, tag = "900")]
        pub(super) later: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Lease {
        #[prost(message, optional, tag = "1")]
        pub(super) metadata: Option<Meta>,
        #[prost(message, optional, tag = "2")]
        pub(super) spec: Option<LeaseSpec>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct LeaseSpec {
        #[prost(string, optional, tag = "1")]
        pub(super) holder: Option<String>,
        #[prost(int32, optional, tag = "2")]
        pub(super) seconds: Option<i32>,
        #[prost(message, optional, tag = "4")]
        pub(super) renewed: Option<Time>,
        #[prost(int32, optional, tag = "5")]
        pub(super) transitions: Option<i32>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct DeleteOptions {
        #[prost(int64, optional, tag = "1")]
        pub(super) grace: Option<i64>,
        #[prost(string, repeated, tag = "5")]
        pub(super) dry_run: Vec<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Review {
        #[prost(message, optional, tag = "2")]
        pub(super) spec: Option<ReviewSpec>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct ReviewSpec {
        #[prost(string, tag = "3")]
        pub(super) user: String,
        #[prost(btree_map = "string, message", tag = "5")]
        pub(super) extra: BTreeMap<String, Extra>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Extra {
        #[prost(string, repeated, tag = "1")]
        pub(super) items: Vec<String>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Pod {
        #[prost(message, optional, tag = "2")]
        pub(super) spec: Option<PodSpec>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct PodSpec {
        #[prost(message, repeated, tag = "2")]
        pub(super) containers: Vec<Container>,
        #[prost(bool, optional, tag = "11")]
        pub(super) host_network: Option<bool>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Container {
        #[prost(string, tag = "1")]
        pub(super) name: String,
        #[prost(message, optional, tag = "8")]
        pub(super) resources: Option<Resources>,
        #[prost(message, repeated, tag = "10")]
        pub(super) probes: Vec<Probe>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Resources {
        #[prost(btree_map = "string, message", tag = "1")]
        pub(super) limits: BTreeMap<String, Quantity>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Quantity {
        #[prost(string, tag = "1")]
        pub(super) text: String,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Probe {
        #[prost(message, optional, tag = "1")]
        pub(super) handler: Option<Handler>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Handler {
        #[prost(message, optional, tag = "3")]
        pub(super) socket: Option<Socket>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Socket {
        #[prost(message, optional, tag = "1")]
        pub(super) port: Option<IntOrText>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct IntOrText {
        #[prost(int64, optional, tag = "1")]
        pub(super) kind: Option<i64>,
        #[prost(int32, optional, tag = "2")]
        pub(super) int: Option<i32>,
        #[prost(string, optional, tag = "3")]
        pub(super) text: Option<String>,
    }
}

fn sent(api_version: &str, kind: &str, message: &impl Message) -> Vec<u8> {
    let envelope = sent::Unknown {
        type_meta: Some(sent::TypeMeta {
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
        }),
        raw: message.encode_to_vec(),
        encoding: String::new(),
    };
    [MAGIC, &envelope.encode_to_vec()].concat()
}

fn check(api_version: &str, kind: &str, message: &impl Message, expect: Value) {
    let mut expect = expect;
    expect["apiVersion"] = json!(api_version);
    expect["kind"] = json!(kind);
    assert_eq!(decode(&sent(api_version, kind, message)), Ok(expect));
}

/// The bytes of `kubectl create namespace demo`, as Go's encoder writes them: every field that is no pointer, set or not.
fn namespace() -> Vec<u8> {
    let metadata = b"\x0a\x04demo\x12\0\x1a\0\x22\0\x2a\0\x32\0\x38\0\x42\0";
    let mut raw = vec![0x0a, metadata.len() as u8];
    raw.extend_from_slice(metadata);
    raw.extend_from_slice(b"\x12\0\x1a\x02\x0a\0");
    let mut body = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09Namespace\x12".to_vec();
    body.push(raw.len() as u8);
    body.extend(raw);
    body.extend_from_slice(b"\x1a\0\x22\0");
    body
}

#[test]
fn what_go_writes_for_fields_that_were_never_set_is_left_out() {
    let expect = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": "demo", "generation": 0},
        "spec": {},
        "status": {},
    });
    assert_eq!(decode(&namespace()), Ok(expect));
}

#[test]
fn bytes_and_maps_are_those_of_json() {
    let secret = sent::Secret {
        metadata: Some(sent::Meta {
            name: Some("s".to_owned()),
            labels: [("a/b".to_owned(), String::new()), ("c".to_owned(), "d".to_owned())].into(),
            finalizers: vec!["x.dev/y".to_owned(), "z".to_owned()],
            owners: vec![sent::Owner {
                manager: "kubectl".to_owned(),
                fields: Some(sent::Json {
                    raw: br#"{"f:data":{}}"#.to_vec(),
                }),
            }],
            ..sent::Meta::default()
        }),
        data: [("key".to_owned(), vec![0, 255, 7]), ("none".to_owned(), Vec::new())].into(),
        kind: "Opaque".to_owned(),
        immutable: Some(false),
        later: "x".to_owned(),
    };
    let expect = json!({
        "metadata": {
            "name": "s",
            "labels": {"a/b": "", "c": "d"},
            "finalizers": ["x.dev/y", "z"],
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:data": {}}}],
        },
        "data": {"key": "AP8H", "none": ""},
        "type": "Opaque",
        "immutable": false,
    });
    check("v1", "Secret", &secret, expect);
}

#[test]
fn quantities_and_ports_are_those_of_json() {
    let pod = |kind, int, text: &str| sent::Pod {
        spec: Some(sent::PodSpec {
            containers: vec![sent::Container {
                name: "c".to_owned(),
                resources: Some(sent::Resources {
                    limits: [(
                        "cpu".to_owned(),
                        sent::Quantity {
                            text: "500m".to_owned(),
                        },
                    )]
                    .into(),
                }),
                probes: vec![sent::Probe {
                    handler: Some(sent::Handler {
                        socket: Some(sent::Socket {
                            port: Some(sent::IntOrText {
                                kind: Some(kind),
                                int: Some(int),
                                text: Some(text.to_owned()),
                            }),
                        }),
                    }),
                }],
            }],
            host_network: Some(false),
        }),
    };
    let expect = |port: Value| {
        let probe = json!({"tcpSocket": {"port": port}});
        let container = json!({"name": "c", "resources": {"limits": {"cpu": "500m"}}, "livenessProbe": probe});
        json!({"spec": {"containers": [container], "hostNetwork": false}})
    };
    check("v1", "Pod", &pod(0, 80, ""), expect(json!(80)));
    check("v1", "Pod", &pod(1, 0, "http"), expect(json!("http")));
}

#[test]
fn times_are_texts_and_zero_is_kept() {
    let time = |seconds, nanos| {
        Some(sent::Time {
            seconds: Some(seconds),
            nanos: Some(nanos),
        })
    };
    let lease = sent::Lease {
        metadata: Some(sent::Meta {
            created: time(-1, 0),
            ..sent::Meta::default()
        }),
        spec: Some(sent::LeaseSpec {
            holder: Some("me".to_owned()),
            seconds: Some(15),
            renewed: time(1_700_000_000, 123_456_000),
            transitions: Some(0),
        }),
    };
    let expect = json!({
        "metadata": {"creationTimestamp": "1969-12-31T23:59:59Z"},
        "spec": {
            "holderIdentity": "me",
            "leaseDurationSeconds": 15,
            "renewTime": "2023-11-14T22:13:20.123456Z",
            "leaseTransitions": 0,
        },
    });
    check("coordination.k8s.io/v1", "Lease", &lease, expect);
    let far = sent::Lease {
        metadata: Some(sent::Meta {
            created: time(i64::MAX, 0),
            ..sent::Meta::default()
        }),
        spec: None,
    };
    assert!(matches!(
        decode(&sent("coordination.k8s.io/v1", "Lease", &far)),
        Err(Error::Malformed { .. })
    ));
}

#[test]
fn options_may_be_of_any_version_and_lists_may_be_messages() {
    let options = sent::DeleteOptions {
        grace: Some(-1),
        dry_run: vec!["All".to_owned()],
    };
    check(
        "muster.dev/v1",
        "DeleteOptions",
        &options,
        json!({"gracePeriodSeconds": -1, "dryRun": ["All"]}),
    );
    let review = sent::Review {
        spec: Some(sent::ReviewSpec {
            user: "jane".to_owned(),
            extra: [(
                "scopes".to_owned(),
                sent::Extra {
                    items: vec!["a".to_owned()],
                },
            )]
            .into(),
        }),
    };
    check(
        "authorization.k8s.io/v1",
        "SubjectAccessReview",
        &review,
        json!({"spec": {"user": "jane", "extra": {"scopes": ["a"]}}}),
    );
}

#[test]
fn what_is_no_object_is_refused_with_the_place() {
    let body = namespace();
    assert_eq!(decode(b"{}"), Err(Error::Magic));
    for end in MAGIC.len() + 1..body.len() {
        // Every field at the end of a message may be missing; nothing else may.
        if let Err(error) = decode(&body[..end]) {
            assert!(
                matches!(&error, Error::Truncated { at } if *at <= end) || matches!(error, Error::Kind { .. }),
                "{end}: {error}"
            );
        }
    }
    assert!(matches!(decode(&body[..20]), Err(Error::Truncated { .. })));
    let unknown = decode(&sent("muster.dev/v1", "Task", &sent::TypeMeta::default()));
    assert_eq!(
        unknown.expect_err("refused").to_string(),
        "the kind \"Task\" of \"muster.dev/v1\" is not read from protobuf; send it as JSON"
    );
    assert!(knows("v1", "ServiceAccount") && !knows("v1", "Task"));
    let mut text = namespace();
    let demo = text.windows(4).position(|bytes| bytes == b"demo").expect("the name");
    text[demo + 1] = 0xff;
    assert_eq!(
        decode(&text),
        Err(Error::Malformed {
            at: demo + 1,
            what: "a text is not UTF-8"
        })
    );
}

#[test]
fn messages_in_messages_are_bounded() {
    // A schema whose `not` is a schema whose `not` is a schema: 28 is the number of `not`.
    let mut schema = Vec::new();
    for _ in 0..10_000 {
        let mut above = vec![0xe2, 0x01];
        prost::encoding::encode_varint(schema.len() as u64, &mut above);
        above.extend_from_slice(&schema);
        schema = above;
    }
    let wrap = |number: u8, inner: &[u8]| {
        let mut outer = vec![number << 3 | 2];
        prost::encoding::encode_varint(inner.len() as u64, &mut outer);
        outer.extend_from_slice(inner);
        outer
    };
    // Definition: spec 2; versions 7; schema 4; openAPIV3Schema 1.
    let definition = wrap(2, &wrap(7, &wrap(4, &wrap(1, &schema))));
    let envelope = sent::Unknown {
        type_meta: Some(sent::TypeMeta {
            api_version: "apiextensions.k8s.io/v1".to_owned(),
            kind: "CustomResourceDefinition".to_owned(),
        }),
        raw: definition,
        encoding: String::new(),
    };
    let error = decode(&[MAGIC, &envelope.encode_to_vec()].concat()).expect_err("refused");
    assert!(error.to_string().starts_with("messages lie too deep"), "{error}");
}

proptest! {
    #[test]
    fn every_input_is_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&[MAGIC, &bytes].concat());
    }

    #[test]
    fn a_bent_object_is_an_object_or_an_error(place in 0usize..70, byte in any::<u8>()) {
        let mut body = namespace();
        let place = place % body.len();
        body[place] = byte;
        if let Ok(value) = decode(&body) {
            prop_assert!(value.is_object());
        }
    }
}
