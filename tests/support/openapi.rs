//! Holds answers against the node's own OpenAPI document: is this status documented
//! for this operation, and has the body the documented shape?

use std::collections::BTreeSet;

use serde_json::Value;

/// The document, and which of its promises were seen.
pub struct Document {
    spec: Value,
    seen: BTreeSet<(String, u16)>,
}

/// An answer with what the document speaks of.
pub struct Answered<'a> {
    /// Like `post /v1/devices`, as the document writes it.
    pub operation: &'a str,
    pub status: u16,
    pub content_type: Option<&'a str>,
    /// Names of the headers, in lower case.
    pub headers: Vec<&'a str>,
    /// `Null` if there is no body.
    pub body: &'a Value,
}

impl Document {
    pub fn new(spec: Value) -> Self {
        assert!(spec["openapi"].as_str().is_some_and(|version| version.starts_with("3.")));
        Self { spec, seen: BTreeSet::new() }
    }

    /// Says what of the answer is not as documented.
    pub fn check(&mut self, answered: &Answered) -> Result<(), String> {
        let Answered { operation, status, .. } = answered;
        let (method, path) = operation.split_once(' ').expect("method and path");
        let responses = &self.spec["paths"][path][method]["responses"];
        assert!(responses.is_object(), "{operation} is not in the document");
        let response = self.resolve(&responses[status.to_string()]);
        if !response.is_object() {
            return Err("this status is not documented".to_owned());
        }
        for (name, header) in response["headers"].as_object().into_iter().flatten() {
            let is_optional = self.resolve(header)["required"] == Value::Bool(false);
            if !is_optional && !answered.headers.contains(&&*name.to_ascii_lowercase()) {
                return Err(format!("there is no header {name}"));
            }
        }
        self.check_body(answered, response)?;
        self.seen.insert(((*operation).to_owned(), *status));
        Ok(())
    }

    /// What the document promises and no answer has shown yet.
    pub fn unseen(&self) -> Vec<(String, u16)> {
        let mut unseen = Vec::new();
        for (path, methods) in self.spec["paths"].as_object().expect("paths") {
            for (method, operation) in methods.as_object().expect("methods") {
                for (status, _) in operation["responses"].as_object().into_iter().flatten() {
                    let promise = (format!("{method} {path}"), status.parse().expect("a status"));
                    if !self.seen.contains(&promise) {
                        unseen.push(promise);
                    }
                }
            }
        }
        unseen
    }

    fn check_body(&self, answered: &Answered, response: &Value) -> Result<(), String> {
        let Some(content) = response["content"].as_object() else {
            let empty = answered.body.is_null();
            return if empty { Ok(()) } else { Err("a body that is not documented".to_owned()) };
        };
        let kind = answered.content_type.unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default();
        let Some(documented) = content.get(kind) else {
            return Err(format!("the content type {kind:?} is not documented"));
        };
        self.validate(&documented["schema"], answered.body)?;
        if kind == "application/problem+json" && answered.body["status"] != answered.status {
            return Err("the body names another status".to_owned());
        }
        Ok(())
    }

    /// The part of JSON Schema that the document uses.
    fn validate(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let schema = self.resolve(schema);
        let Some(rules) = schema.as_object() else {
            return Ok(());
        };
        for (rule, wanted) in rules {
            let holds = match rule.as_str() {
                "type" => has_type(wanted, value),
                "enum" => wanted.as_array().expect("a list").contains(value),
                "const" => wanted == value,
                "minimum" => value.as_f64().is_none_or(|n| n >= wanted.as_f64().expect("a number")),
                "pattern" => {
                    value.as_str().is_none_or(|text| matches(wanted.as_str().expect("text"), text))
                }
                "required" => wanted.as_array().expect("names").iter().all(|name| {
                    !value[name.as_str().expect("a name")].is_null()
                        || is_nullable(self, schema, name)
                }),
                "additionalProperties" if wanted == &Value::Bool(false) => {
                    let known = |name: &String| rules["properties"].get(name).is_some();
                    value.as_object().is_none_or(|object| object.keys().all(known))
                }
                _ => true,
            };
            if !holds {
                return Err(format!("{value} breaks {rule}: {wanted}"));
            }
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(inner) = value.get(name) {
                self.validate(property, inner).map_err(|why| format!("{name}: {why}"))?;
            }
        }
        for item in value.as_array().into_iter().flatten() {
            self.validate(&schema["items"], item)?;
        }
        Ok(())
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(reference) => {
                let pointer = reference.strip_prefix('#').expect("a local reference");
                self.spec.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
            }
            None => value,
        }
    }
}

fn is_nullable(document: &Document, schema: &Value, name: &Value) -> bool {
    let property = document.resolve(&schema["properties"][name.as_str().expect("a name")]);
    has_type(&property["type"], &Value::Null)
}

fn has_type(wanted: &Value, value: &Value) -> bool {
    match wanted {
        Value::Array(several) => several.iter().any(|one| has_type(one, value)),
        Value::String(name) => match name.as_str() {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            other => panic!("unknown type {other}"),
        },
        _ => false,
    }
}

/// Patterns like `^[a-z2-7]{32}$` and `^[a-z0-9]{1,32}$`; others are not looked at.
fn matches(pattern: &str, text: &str) -> bool {
    let parts = pattern
        .strip_prefix("^[")
        .and_then(|rest| rest.strip_suffix("}$"))
        .and_then(|rest| rest.rsplit_once("]{"));
    let Some((class, count)) = parts else {
        return true;
    };
    let (least, most) = count.split_once(',').unwrap_or((count, count));
    let counts = least.parse().expect("a number")..=most.parse().expect("a number");
    counts.contains(&text.chars().count()) && text.chars().all(|c| is_in(class, c))
}

fn is_in(class: &str, c: char) -> bool {
    let class: Vec<char> = class.chars().collect();
    let mut at = 0;
    while at < class.len() {
        if class.get(at + 1) == Some(&'-') && at + 2 < class.len() {
            if (class[at]..=class[at + 2]).contains(&c) {
                return true;
            }
            at += 3;
        } else if class[at] == c {
            return true;
        } else {
            at += 1;
        }
    }
    false
}

#[test]
fn a_pattern_is_a_class_and_a_count() {
    assert!(matches("^[a-z2-7]{4}$", "ab27"));
    assert!(!matches("^[a-z2-7]{4}$", "ab28"));
    assert!(!matches("^[a-z2-7]{4}$", "ab2"));
    assert!(matches("^[a-z_:-]{1,3}$", "-:"));
}
