//! Property-based tests of the API by schemathesis, from the document that the node serves:
//! no answer is a 5xx, none is undocumented, bodies and headers are as documented.
#![allow(clippy::disallowed_methods, reason = "the doors are the product's, not the tests'")]

mod support;

use std::time::Duration;

use support::{Node, Options, script, tools};

/// Every answer is held against these.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_headers_conformance,response_schema_conformance";
/// Longer than a loaded machine takes; the examples are bounded by their number.
const PATIENCE: Duration = Duration::from_secs(300);

#[tokio::test]
async fn whatever_the_document_allows_or_forbids_is_answered_as_documented() {
    // The devices of strangers are bounded by a minute: documented, and seen elsewhere. The
    // connection may rest while examples are made.
    let config = "[api]\ndevices_per_address_per_minute = 1000000\nhead_timeout_ms = 120000\n";
    let options = Options { config: Some(config.to_owned()), ..Options::default() };
    let node = Node::start_with(options).await;
    let device = node.create_device().await;
    node.subscribe(&device.regid, "news").await;
    let mut command = tokio::process::Command::new(tools::schemathesis());
    command
        .arg("run")
        .arg(format!("{}/openapi.json", node.https_url()))
        .arg("--tls-verify")
        .arg(node.ca_file())
        .args(["-H", &format!("Authorization: Bearer {}", node.app().app_secret)])
        .args(["--checks", CHECKS, "--phases", "examples,coverage,fuzzing"])
        .args(["--generation-deterministic", "--max-examples", "20"])
        .args(["--no-color", "--continue-on-failure"])
        .args([
            "--workers",
            "1",
            "--request-timeout",
            "20",
            "--request-retries",
            "2",
            "--warnings",
            "off",
        ])
        .args(["--suppress-health-check", "all"])
        .env("SCHEMATHESIS_HOOKS", "schemathesis_hooks")
        .env("PYTHONPATH", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/foreign"))
        .current_dir(node.data());
    let output = script::output(command, PATIENCE).await;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    println!("{said}");
}
