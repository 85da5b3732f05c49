//! `openapi.json` says exactly what the router and the table of errors do.

use std::collections::BTreeSet;

use carillon::{api, base::http::Code};
use serde_json::Value;

fn document() -> Value {
    serde_json::from_str(include_str!("../src/api/openapi.json")).unwrap()
}

const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

/// Every operation: method, path, and what the document says about it.
fn operations(document: &Value) -> Vec<(String, String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let of = |(path, item): (&String, &'_ Value)| {
        let item = item.as_object().unwrap();
        assert!(item.keys().all(|key| METHODS.contains(&key.as_str())), "{path}");
        item.keys().map(|method| (method.clone(), path.clone())).collect::<Vec<_>>()
    };
    let names: Vec<_> = paths.iter().flat_map(of).collect();
    names
        .into_iter()
        .map(|(method, path)| {
            let found = &paths[&path][&method];
            (method, path, found)
        })
        .collect()
}

#[test]
fn every_route_is_documented_and_nothing_else() {
    let document = document();
    let documented: BTreeSet<_> =
        operations(&document).into_iter().map(|(method, path, _)| (method, path)).collect();
    let routed: BTreeSet<_> = api::ROUTES
        .iter()
        .flat_map(|route| route.operations)
        .map(|(method, path)| ((*method).to_owned(), (*path).to_owned()))
        .collect();
    assert_eq!(documented, routed);
}

#[test]
fn every_path_parameter_is_described() {
    let document = document();
    for (method, path, operation) in operations(&document) {
        let in_path: BTreeSet<_> =
            path.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect();
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        let described: Vec<Value> =
            parameters.iter().map(|p| resolve(&document, p).clone()).collect();
        let described: BTreeSet<_> = described
            .iter()
            .filter(|p| p["in"] == "path")
            .filter_map(|p| p["name"].as_str())
            .collect();
        assert_eq!(described, in_path, "{method} {path}");
    }
}

#[test]
fn every_operation_has_the_errors_that_can_happen() {
    let document = document();
    let mut ids = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        let what = format!("{method} {path}");
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{what}");
        let responses = operation["responses"].as_object().unwrap();
        let is_open = operation["security"].as_array().is_some_and(Vec::is_empty);
        let mut wanted = vec!["405", "500", "503"];
        if !is_open {
            wanted.extend(["400", "401"]);
        }
        if operation.get("requestBody").is_some() {
            wanted.extend(["400", "408", "413", "415"]);
        }
        for status in wanted {
            assert!(responses.contains_key(status), "{what} lacks {status}");
        }
        assert_eq!(responses.keys().filter(|status| status.starts_with('2')).count(), 1, "{what}");
        for (status, response) in
            responses.iter().filter(|(status, _)| status.starts_with(['4', '5']))
        {
            let content = &resolve(&document, response)["content"]["application/problem+json"];
            assert_eq!(
                content["schema"]["$ref"], "#/components/schemas/Problem",
                "{what} {status}"
            );
        }
    }
}

#[test]
fn the_codes_of_problems_are_those_of_the_table() {
    let document = document();
    let listed = &document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"];
    let listed: Vec<_> = listed.as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(listed, Code::ALL.map(|code| code.row().text));
}

#[test]
fn every_reference_leads_somewhere_and_every_component_is_used() {
    let document = document();
    let mut used = BTreeSet::new();
    walk(&document, &mut |reference| {
        assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
        used.insert(reference.to_owned());
    });
    for kind in ["parameters", "responses", "schemas", "headers"] {
        for name in document["components"][kind].as_object().unwrap().keys() {
            assert!(
                used.contains(&format!("#/components/{kind}/{name}")),
                "{kind}/{name} is not used"
            );
        }
    }
}

fn resolve<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).unwrap(),
        None => value,
    }
}

fn walk(value: &Value, on_reference: &mut impl FnMut(&str)) {
    match value {
        Value::Object(fields) => {
            if let Some(reference) = fields.get("$ref").and_then(Value::as_str) {
                on_reference(reference);
            }
            fields.values().for_each(|field| walk(field, on_reference));
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, on_reference)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
