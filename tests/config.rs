//! The configuration: the documented file is the default, and errors say where.

use std::{fs, path::Path, process::Command};

use carillon::config::{Config, Error};

const DOCUMENTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/carillon.toml");

fn keys(config: &toml::Table) -> Vec<(String, String)> {
    let of = |(section, keys): (&String, &toml::Value)| {
        let keys = keys.as_table().expect("only sections at the top");
        let inner = |(key, value): (&String, &toml::Value)| match value {
            toml::Value::Table(table) => {
                table.keys().map(|inner| (section.clone(), format!("{key}.{inner}"))).collect()
            }
            _ => vec![(section.clone(), key.clone())],
        };
        keys.iter().flat_map(inner).collect::<Vec<_>>()
    };
    config.iter().flat_map(of).collect()
}

#[test]
fn the_documented_file_is_the_default_and_has_every_key() {
    assert_eq!(Config::read(Path::new(DOCUMENTED)).unwrap(), Config::default());
    let text = fs::read_to_string(DOCUMENTED).unwrap();
    let documented: toml::Table = toml::from_str(&text).unwrap();
    let all = toml::Table::try_from(Config::default()).unwrap();
    assert_eq!(keys(&documented), keys(&all));
}

#[test]
fn every_key_is_explained() {
    let text = fs::read_to_string(DOCUMENTED).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let is_key = |line: &str| line.contains(" = ") && !line.starts_with('#');
    for pair in lines.windows(2).filter(|pair| is_key(pair[1])) {
        // `private_key` shares the words of `certificate`.
        assert!(pair[0].starts_with("# ") || is_key(pair[0]), "{} has no comment", pair[1]);
    }
}

fn error_of(text: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("carillon.toml");
    fs::write(&file, text).unwrap();
    Config::read(&file).unwrap_err().to_string()
}

#[test]
fn a_wrong_key_or_value_is_named_with_its_line() {
    let cases = [
        ("[edge]\n\nwindwo = 4\n", "carillon.toml:3: ", "unknown field `windwo`"),
        ("[egde]\nwindow = 4\n", "carillon.toml:1: ", "unknown field `egde`"),
        ("[edge]\nwindow = \"4\"\n", "carillon.toml:2: ", "invalid type"),
        ("[edge]\nwindow = 70000\n", "carillon.toml:2: ", "invalid value"),
        ("[listen]\n# x\nmqtt = \"1883\"\n", "carillon.toml:3: ", "neither ADDR:PORT"),
        ("[log]\nformat = \"xml\"\n", "carillon.toml:2: ", "unknown variant `xml`"),
        ("[edge]\nwindow 4\n", "carillon.toml:2: ", ""),
        ("[limits.apps.a]\nfeedback_days = 1\n", "carillon.toml:2: ", "unknown field"),
    ];
    for (text, place, reason) in cases {
        let error = error_of(text);
        assert!(error.contains(place) && error.contains(reason), "{text:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn postgres_is_reached_by_exactly_one_setting() {
    let postgres = "[longterm]\nstore = \"postgres\"\n";
    let (url, file) = ("postgres_url = \"host=db\"\n", "postgres_url_file = \"url\"\n");
    for wrong in [String::new(), format!("{url}{file}")] {
        assert!(error_of(&format!("{postgres}{wrong}")).starts_with("longterm.postgres_url: set"));
    }
    let config: Config = toml::from_str(&format!("{postgres}{url}")).unwrap();
    config.check().unwrap();
}

#[test]
fn every_range_is_checked() {
    let cases = [
        ("listen.backlog", "0"),
        ("listen.certificate", "\"c.pem\""),
        ("store.retention_days", "0"),
        ("store.retention_days", "367"),
        ("store.shard_tasks", "65"),
        ("store.pointer_flush_ms", "1001"),
        ("store.cache_bytes", "1048575"),
        ("longterm.postgres_timeout_ms", "99"),
        ("longterm.cache_bytes", "1048575"),
        ("longterm.history_days", "36501"),
        ("longterm.behind_entries_max", "0"),
        ("longterm.behind_max_s", "0"),
        ("edge.connections_max", "0"),
        ("edge.handshakes_max", "0"),
        ("edge.handshake_timeout_ms", "99"),
        ("edge.connect_bytes_max", "255"),
        ("edge.packet_bytes_max", "131071"),
        ("edge.keep_alive_min_s", "1201"),
        ("edge.window", "0"),
        ("edge.window_per_registration", "33"),
        ("edge.frame_entries_max", "4097"),
        ("edge.pack_bytes_min", "511"),
        ("edge.write_timeout_ms", "99"),
        ("api.connections_max", "0"),
        ("api.head_bytes_max", "8191"),
        ("api.body_bytes_max", "1023"),
        ("limits.targets_per_send", "1001"),
        ("limits.payload_bytes_max", "65537"),
        ("limits.ttl_default_s", "604801"),
        ("limits.topics_per_registration", "3981"),
        ("limits.allowance.targets_per_s", "10000001"),
        ("limits.allowance.targets_burst", "0"),
        ("limits.allowance.broadcasts_per_s", "10000001"),
        ("limits.allowance.broadcasts_burst", "0"),
        ("limits.apps.shop.targets_per_s", "10000001"),
        ("limits.apps.shop.broadcasts_burst", "0"),
        ("limits.apps.shop.payload_bytes_max", "65537"),
        ("limits.apps.Shop", "{}"),
    ];
    for (key, value) in cases {
        let (section, name) = key.rsplit_once('.').unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("carillon.toml");
        fs::write(&file, format!("[{section}]\n{name} = {value}\n")).unwrap();
        match Config::read(&file) {
            Err(Error::OutOfRange { key: found, .. }) => assert_eq!(found, key),
            other => panic!("{key} = {value}: {other:?}"),
        }
    }
}

#[test]
fn check_says_ok_or_where_it_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let check = |text: &str| {
        let file = dir.path().join("node.toml");
        fs::write(&file, text).unwrap();
        let run =
            Command::new(env!("CARGO_BIN_EXE_carillon")).arg("check").arg(&file).output().unwrap();
        let said = [run.stdout, run.stderr].concat();
        let said =
            String::from_utf8(said).unwrap().replace(&format!("{}/", dir.path().display()), "");
        (run.status.code(), said)
    };
    assert_eq!(check(""), (Some(0), "node.toml: ok\n".into()));
    let wrong = |text| (Some(1), format!("carillon: {text}\n"));
    assert_eq!(
        check("[log]\n\n[edge]\nwindow = 0\n"),
        wrong("node.toml:4: edge.window: at least 1")
    );
    let (code, said) = check("[log]\nfilter = \"info,=\"\n");
    assert_eq!(code, Some(1));
    assert!(said.starts_with("carillon: node.toml:2: log.filter: "), "{said}");
    assert_eq!(check("x = 1").0, Some(1));
}
