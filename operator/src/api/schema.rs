//! Schemas in the plain shape that the CRD has: no references, optional fields without a wrapper.

use kube::core::schema::{OptionalEnum, OptionalIntOrString, StructuralSchemaRewriter};
use schemars::{JsonSchema, generate::SchemaSettings, transform::AddNullable};
use serde_json::Value;

/// The schema of `T`, by the steps of kube's derive, with our own extensions kept.
pub(crate) fn plain<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3()
        .with(|settings| {
            settings.inline_subschemas = true;
            settings.meta_schema = None;
        })
        .with_transform(AddNullable::default())
        .with_transform(StructuralSchemaRewriter)
        .with_transform(OptionalEnum)
        .with_transform(OptionalIntOrString);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}
