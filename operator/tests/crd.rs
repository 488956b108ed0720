//! The CRD as it is installed: its size, its form, and that the repository and the chart hold what the code says.

use fanout_operator::api::{change, crd};
use serde_json::Value;

fn walk<'a>(value: &'a Value, path: &str, see: &mut impl FnMut(&str, &'a Value)) {
    see(path, value);
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, field)| walk(field, &format!("{path}/{key}"), see))
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, item)| walk(item, &format!("{path}/{at}"), see))
        }
        _ => {}
    }
}

#[test]
fn the_crd_is_small_enough_for_kubectl_apply() {
    // `kubectl apply` keeps the object as JSON in an annotation. The rest is for what is still to come.
    let bytes = crd::crd().to_string().len();
    assert!(bytes < 200_000, "the CRD has {bytes} bytes of JSON; kubectl apply fails above 262,144");
}

#[test]
fn every_field_of_the_spec_declares_how_a_change_is_carried_out() {
    assert_eq!(change::unclassified(), Vec::<String>::new());
}

#[test]
fn the_class_of_a_change_is_not_in_the_crd() {
    assert!(!crd::yaml().contains(sidecar_config::CHANGE_CLASS));
}

#[test]
fn an_explicit_null_is_never_stored() {
    let crd = crd::crd();
    walk(&crd, "", &mut |path, value| {
        assert!(!path.ends_with("/nullable"), "{path}");
        assert!(!(path.contains("/enum/") && value.is_null()), "{path}");
    });
}

#[test]
fn numbers_are_whole_and_formats_are_those_the_api_server_knows() {
    let crd = crd::crd();
    walk(&crd, "", &mut |path, value| {
        assert!(!value.is_f64(), "{path} is {value}");
        if path.ends_with("/format") && value.is_string() {
            assert!(
                ["int32", "int64", "double", "date-time", "date", "byte"].contains(&value.as_str().unwrap()),
                "{path} {value}"
            );
        }
    });
}

#[test]
fn every_rule_says_what_to_do() {
    let crd = crd::crd();
    let mut rules = 0;
    walk(&crd, "", &mut |path, value| {
        if path.ends_with("/x-kubernetes-validations") {
            for rule in value.as_array().unwrap() {
                rules += 1;
                assert!(rule["message"].as_str().is_some_and(|message| message.len() > 20), "{path} {rule}");
            }
        }
    });
    assert!(rules > 25, "{rules}");
}

#[test]
fn scaling_and_columns_are_as_documented() {
    let crd = crd::crd();
    let version = &crd["spec"]["versions"][0];
    assert_eq!(version["subresources"]["scale"]["labelSelectorPath"], ".status.selector");
    let columns = version["additionalPrinterColumns"].as_array().unwrap();
    let names = |wide: bool| -> Vec<_> {
        let shown = columns.iter().filter(|column| (column["priority"] == 1) == wide);
        shown.map(|column| column["name"].as_str().unwrap()).collect()
    };
    assert_eq!(names(false), ["Ready", "Desired", "Nodes", "Conns", "Redis", "Version", "Age"]);
    assert_eq!(names(true), ["Reason", "Message"]);
}

#[test]
fn an_item_of_a_list_has_no_defaults_so_that_kubectl_apply_finds_it_unchanged() {
    let crd = crd::crd();
    let mut items = 0;
    walk(
        &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"],
        "",
        &mut |path, value| {
            if let Some((_, below)) = path.split_once("/items") {
                items += 1;
                assert!(
                    !path.ends_with("/default") || below.ends_with("/properties/default"),
                    "{path}: {value}"
                );
            }
        },
    );
    assert!(items > 100, "{items}");
}

#[test]
fn a_rule_of_the_whole_object_names_the_field_at_fault() {
    let crd = crd::crd();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    for rule in schema["x-kubernetes-validations"].as_array().unwrap() {
        let path = rule["fieldPath"].as_str().unwrap_or_else(|| panic!("kubectl would say <nil>: {rule}"));
        let known = schema.pointer(&path.replace('.', "/properties/"));
        assert!(known.is_some(), "the API server refuses a path that is not in the schema: {path}");
    }
}

#[test]
fn the_repository_and_the_chart_hold_the_crd_of_this_code() {
    for file in
        ["../crds/fanoutclusters.fanout.dev.yaml", "../charts/fanout/crd/fanoutclusters.fanout.dev.yaml"]
    {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        let held =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(held == crd::yaml(), "{} is stale: run `make crds`", path.display());
    }
}
