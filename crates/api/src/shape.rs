//! Where a value stands in its kind's type, and by what rule values merge there.
//!
//! One reading of the schema facts for strategic merge patch and for server-side apply. Without a schema every object is
//! merged field by field and every list is one value.

use serde_json::Value;

use crate::schema::{Field, ListType, Schema, Type};

/// A place in a type.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Spot<'a> {
    Schema(&'a Schema),
    Field(&'a Field),
    Type(&'a Type),
    Unknown,
}

/// How server-side apply merges what stands at a place.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape<'a> {
    /// One value, owned as a whole.
    Leaf,
    Struct(&'a Schema),
    Map(Spot<'a>),
    /// A list of scalars, each owned by itself.
    Set,
    Keyed(&'a [&'static str], Spot<'a>),
}

impl<'a> Spot<'a> {
    pub(crate) fn of(schema: Option<&'a Schema>) -> Self {
        schema.map_or(Spot::Unknown, Spot::Schema)
    }

    fn ty(self) -> Option<&'a Type> {
        match self {
            Spot::Field(f) => Some(&f.ty),
            Spot::Type(t) => Some(t),
            _ => None,
        }
    }

    /// The place of a field or of a map's value.
    pub(crate) fn child(self, key: &str) -> Spot<'a> {
        let of = |schema: &'a Schema| schema.fields.get(key).map_or(Spot::Unknown, Spot::Field);
        match (self, self.ty()) {
            (Spot::Schema(schema), _) => of(schema),
            (_, Some(Type::Object(r))) => of(r.schema()),
            (_, Some(Type::Map(of))) => Spot::Type(of),
            _ => Spot::Unknown,
        }
    }

    /// The place of a list's items.
    pub(crate) fn items(self) -> Spot<'a> {
        match self.ty() {
            Some(Type::List { of, .. }) => Spot::Type(of),
            _ => Spot::Unknown,
        }
    }

    pub(crate) fn field(self) -> Option<&'a Field> {
        match self {
            Spot::Field(f) => Some(f),
            _ => None,
        }
    }

    /// The rule at this place; where the type says nothing, what the values are decides.
    pub(crate) fn shape(self, left: Option<&Value>, right: Option<&Value>) -> Shape<'a> {
        let seen = || {
            let object = |v: Option<&Value>| v.is_some_and(Value::is_object);
            let other = |v: Option<&Value>| v.is_some_and(|v| !v.is_object() && !v.is_null());
            if (object(left) || object(right)) && !other(left) && !other(right) { Shape::Map(Spot::Unknown) } else { Shape::Leaf }
        };
        let fits = |good: fn(&Value) -> bool| [left, right].into_iter().flatten().all(|v| v.is_null() || good(v));
        let structure = |s: &'a Schema| if s.atomic { Shape::Leaf } else { Shape::Struct(s) };
        let shape = match (self, self.ty()) {
            (Spot::Schema(s), _) => structure(s),
            (Spot::Unknown, _) => return seen(),
            (Spot::Field(f), _) if f.atomic => Shape::Leaf,
            (_, Some(Type::Object(r))) => structure(r.schema()),
            (_, Some(Type::Map(of))) => Shape::Map(Spot::Type(of)),
            (_, Some(Type::Raw | Type::Any)) => return seen(),
            (Spot::Field(f), Some(Type::List { .. })) => match &f.list {
                ListType::Atomic => Shape::Leaf,
                ListType::Set => Shape::Set,
                ListType::Map(keys) => Shape::Keyed(keys, self.items()),
            },
            _ => Shape::Leaf,
        };
        // A value of a wrong type is one value, whatever should stand here.
        match shape {
            Shape::Struct(_) | Shape::Map(_) if !fits(Value::is_object) => Shape::Leaf,
            Shape::Set | Shape::Keyed(..) if !fits(Value::is_array) => Shape::Leaf,
            shape => shape,
        }
    }
}
