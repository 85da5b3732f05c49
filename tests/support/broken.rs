//! Values that a schema forbids, made from one that it allows: each field of another type, out of its
//! range, missing or unknown, one at a time.

use serde_json::{Value, json};

/// A forbidden value and what is wrong with it.
pub type Broken = (String, Value);

/// What a reference stands for.
pub fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(reference) => document.pointer(&reference[1..]).expect("it leads somewhere"),
        None => schema,
    }
}

/// All that can be made of `sample`, which the schema allows.
pub fn all(document: &Value, schema: &Value, sample: &Value) -> Vec<Broken> {
    let schema = variant(document, resolve(document, schema), sample);
    let mut broken = of_other_types(schema);
    broken.extend(out_of_range(schema, sample));
    if let Value::Object(fields) = sample {
        broken.extend(of_fields(document, schema, sample, fields.keys()));
    }
    if let Some(item) = sample.get(0) {
        for (why, item) in all(document, &schema["items"], item) {
            broken.push((format!("[0]{why}"), json!([item])));
        }
    }
    broken
}

/// Of several forms of an object the one that the sample has.
fn variant<'a>(document: &'a Value, schema: &'a Value, sample: &Value) -> &'a Value {
    let fits = |form: &&Value| {
        sample.as_object().is_some_and(|s| s.keys().all(|key| !form["properties"][key].is_null()))
    };
    let forms = schema["oneOf"].as_array().into_iter().flatten();
    forms.map(|form| resolve(document, form)).find(fits).unwrap_or(schema)
}

fn of_other_types(schema: &Value) -> Vec<Broken> {
    let kind = match (&schema["type"], schema.get("enum"), schema.get("const")) {
        (Value::String(kind), ..) => kind.as_str(),
        (_, Some(_), _) => "string",
        (_, _, Some(_)) => "boolean",
        // Anything at all.
        _ => return Vec::new(),
    };
    let others =
        [json!(true), json!(7), json!(1.5), json!("a text"), json!(["a"]), json!({"a": 1})];
    let is_other = |value: &Value| match kind {
        "string" => !value.is_string(),
        "integer" => !value.is_i64() && !value.is_u64(),
        "boolean" => !value.is_boolean(),
        "array" => !value.is_array(),
        "object" => !value.is_object(),
        other => panic!("unknown type {other}"),
    };
    let others = others.into_iter().filter(is_other);
    others.map(|value| (format!(": {value} in the place of a {kind}"), value)).collect()
}

fn out_of_range(schema: &Value, sample: &Value) -> Vec<Broken> {
    let mut broken = Vec::new();
    let number = |name: &str| schema[name].as_i64();
    let mut push = |why: &str, value: Value| broken.push((format!(": {why}"), value));
    if let Some(least) = number("minimum") {
        push("below the least", json!(least - 1));
    }
    if let Some(most) = number("maximum") {
        push("above the most", json!(most + 1));
    }
    if schema["minLength"].as_u64() > Some(0) {
        push("too short", json!(""));
    }
    if let Some(most) = number("maxLength") {
        push("too long", json!("x".repeat(most as usize + 1)));
    }
    if schema["pattern"].is_string() {
        push("against the pattern", json!("#é "));
        push("empty", json!(""));
    }
    if schema["format"] == "date-time" {
        push("no time", json!("tomorrow"));
    }
    if schema["contentEncoding"] == "base64" {
        push("no base64", json!("%%%"));
    }
    if schema["enum"].is_array() {
        push("not one of them", json!("something else"));
    }
    if schema["const"] == true {
        push("not that", json!(false));
    }
    if schema["minItems"].as_u64() > Some(0) {
        push("too few", json!([]));
    }
    if let (Some(most), Some(item)) = (number("maxItems"), sample.get(0)) {
        push("too many", json!(vec![item; most as usize + 1]));
    }
    broken
}

fn of_fields<'a>(
    document: &Value,
    schema: &Value,
    sample: &Value,
    fields: impl Iterator<Item = &'a String>,
) -> Vec<Broken> {
    let mut broken = Vec::new();
    let without = |names: &[&str]| {
        let mut less = sample.clone();
        less.as_object_mut().expect("an object").retain(|name, _| !names.contains(&name.as_str()));
        less
    };
    for name in fields {
        for (why, value) in all(document, &schema["properties"][name], &sample[name]) {
            let mut changed = sample.clone();
            changed[name] = value;
            broken.push((format!(".{name}{why}"), changed));
        }
    }
    if schema["additionalProperties"] == false {
        let mut more = sample.clone();
        more["unheard_of"] = json!(1);
        broken.push((": an unknown field".to_owned(), more));
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        broken.push((format!(": without {name}"), without(&[name])));
    }
    // Exactly one of these.
    let forms = schema["oneOf"].as_array().into_iter().flatten();
    let either: Vec<&str> = forms.filter_map(|form| form["required"][0].as_str()).collect();
    if !either.is_empty() {
        broken.push((format!(": none of {either:?}"), without(&either)));
        let mut both = sample.clone();
        either.iter().for_each(|name| both[*name] = json!("AA=="));
        broken.push((format!(": all of {either:?}"), both));
    }
    broken
}
