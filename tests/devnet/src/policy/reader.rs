//! Reads HuJSON (JSON with comments and trailing commas) so that each error has its place.

use std::collections::BTreeMap;

use jsonc_parser::ast::{Array, Object, ObjectProp, StringLit, Value};
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde_json::json;

use super::PolicyError;

/// HuJSON's two liberties, and none of JSON5's.
const OPTIONS: ParseOptions = ParseOptions {
    allow_comments: true,
    allow_trailing_commas: true,
    allow_loose_object_property_names: false,
    allow_missing_commas: false,
    allow_single_quoted_strings: false,
    allow_hexadecimal_numbers: false,
    allow_unary_plus_numbers: false,
    allow_bare_decimal_point_numbers: false,
    allow_non_finite_numbers: false,
    allow_extended_string_escapes: false,
};

/// A text that is read.
pub(super) struct Reader<'t> {
    text: &'t str,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text }
    }

    /// The whole of it.
    pub(super) fn value(&self) -> Result<Value<'t>, PolicyError> {
        let parsed = parse_to_ast(self.text, &CollectOptions::default(), &OPTIONS)
            .map_err(|error| PolicyError::new(self.text, error.range().start, error.kind().to_string()))?;
        parsed.value.ok_or_else(|| PolicyError::new(self.text, 0, "the file is empty: it should hold an object".into()))
    }

    /// Something wrong at `place`.
    pub(super) fn wrong(&self, place: &impl Ranged, words: impl Into<String>) -> PolicyError {
        PolicyError::new(self.text, place.start(), words.into())
    }

    /// The fields of an object, in the order of `known`; any other one, and one that comes twice, is an error.
    pub(super) fn fields<'a, const N: usize>(
        &self,
        value: &'a Value<'t>,
        what: &str,
        known: [&str; N],
    ) -> Result<[Option<&'a Value<'t>>; N], PolicyError> {
        let mut found = [None; N];
        for property in self.object(value, what)? {
            let name = property.name.as_str();
            let place = known.iter().position(|known| *known == name).and_then(|at| found.get_mut(at));
            let Some(place) = place else {
                let words = format!("unknown field \"{name}\": {what} has {}", known.join(", "));
                return Err(self.wrong(&property.name, words));
            };
            if place.replace(&property.value).is_some() {
                return Err(self.wrong(&property.name, format!("\"{name}\" stands here twice")));
            }
        }
        Ok(found)
    }

    /// The fields of an object, whatever their names.
    pub(super) fn object<'a>(&self, value: &'a Value<'t>, what: &str) -> Result<&'a [ObjectProp<'t>], PolicyError> {
        match value {
            Value::Object(Object { properties, .. }) => Ok(properties),
            _ => Err(self.wrong(value, format!("{what} should be an object"))),
        }
    }

    /// The elements of a list.
    pub(super) fn list<'a>(&self, value: &'a Value<'t>, what: &str) -> Result<&'a [Value<'t>], PolicyError> {
        match value {
            Value::Array(Array { elements, .. }) => Ok(elements),
            _ => Err(self.wrong(value, format!("{what} should be a list"))),
        }
    }

    /// A text.
    pub(super) fn text<'a>(&self, value: &'a Value<'t>, what: &str) -> Result<&'a str, PolicyError> {
        match value {
            Value::StringLit(StringLit { value, .. }) => Ok(value),
            _ => Err(self.wrong(value, format!("{what} should be a text"))),
        }
    }

    /// The texts of a list.
    pub(super) fn texts(&self, value: &Value<'t>, what: &str) -> Result<Vec<String>, PolicyError> {
        let each = |value| self.text(value, &format!("each of {what}")).map(str::to_owned);
        self.list(value, what)?.iter().map(each).collect()
    }

    /// What is between: plain JSON.
    pub(super) fn json(&self, value: &Value<'t>) -> Result<serde_json::Value, PolicyError> {
        Ok(match value {
            Value::StringLit(text) => json!(text.value),
            Value::BooleanLit(boolean) => json!(boolean.value),
            Value::NullKeyword(_) => serde_json::Value::Null,
            Value::NumberLit(number) => serde_json::from_str(number.value)
                .map_err(|error| self.wrong(value, format!("a number that can't be read: {error}")))?,
            Value::Array(array) => array.elements.iter().map(|value| self.json(value)).collect::<Result<_, _>>()?,
            Value::Object(object) => {
                let fields = object.properties.iter();
                let fields = fields.map(|field| Ok((field.name.as_str().to_owned(), self.json(&field.value)?)));
                json!(fields.collect::<Result<BTreeMap<_, _>, PolicyError>>()?)
            }
        })
    }
}
