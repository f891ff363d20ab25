//! Kubernetes quantities: `500m`, `1.5Gi`, `2e3`, as exact numbers of nano-units.
//!
//! Source: the grammar and the canonical form described with `resource.Quantity` in `k8s.io/apimachinery`. Knows
//! nothing of what is measured; callers ask for whole units (bytes) or thousandths (CPU).

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

use serde_json::Value;

/// Nano-units in one unit.
const NANO: i128 = 1_000_000_000;
/// The largest binary amount, in units; larger ones are capped to it, as upstream does.
const BINARY_UNITS_MAX: i128 = i64::MAX as i128;
const DECIMAL_SUFFIXES: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY_SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// How an amount is written; it never changes what the amount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `100m`, `2k`
    #[default]
    DecimalSi,
    /// `64Mi`
    BinarySi,
    /// `1e3`
    DecimalExponent,
}

/// An exact amount. Compared by value: `1Ki == 1024`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// What is not a quantity. The message is upstream's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
    #[error("the quantity is too large")]
    TooLarge,
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    /// Whole units, written decimal: pods, cores.
    pub const fn from_units(units: i64) -> Self {
        Self { nanos: units as i128 * NANO, format: Format::DecimalSi }
    }

    /// Thousandths, written decimal: CPU.
    pub const fn from_millis(millis: i64) -> Self {
        Self { nanos: millis as i128 * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Billionths, written decimal: CPU as the metrics API tells it.
    pub const fn from_nanos(nanos: i64) -> Self {
        Self { nanos: nanos as i128, format: Format::DecimalSi }
    }

    /// Bytes, written with `Ki`, `Mi` … where they divide.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self { nanos: bytes as i128 * NANO, format: Format::BinarySi }
    }

    /// From a string or a JSON number, as the API accepts both.
    pub fn from_value(value: &Value) -> Result<Self, QuantityError> {
        match value {
            Value::String(s) => s.trim().parse(),
            Value::Number(n) => n.to_string().parse(),
            _ => Err(QuantityError::Format),
        }
    }

    pub fn format(self) -> Format {
        self.format
    }

    pub fn with_format(self, format: Format) -> Self {
        Self { format, ..self }
    }

    /// Whole units, rounded away from zero; saturates.
    pub fn as_units(self) -> i64 {
        saturate(div_up(self.nanos, NANO))
    }

    /// Whole bytes, rounded away from zero; saturates. The same as [`Quantity::as_units`], named for its use.
    pub fn as_bytes(self) -> i64 {
        self.as_units()
    }

    /// Thousandths of a unit, rounded away from zero; saturates.
    pub fn as_millis(self) -> i64 {
        saturate(div_up(self.nanos, NANO / 1000))
    }

    /// Billionths of a unit.
    pub fn as_nanos(self) -> i128 {
        self.nanos
    }

    pub fn as_f64(self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// True where no part is smaller than one unit.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    /// `self * by`, saturating: so many replicas of one request.
    pub fn times(self, by: i64) -> Self {
        Self { nanos: self.nanos.saturating_mul(by.into()), ..self }
    }

    fn decimal(self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut number, mut exponent) = (self.nanos, -9);
        while number % 1000 == 0 && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") };
        }
        let suffix = DECIMAL_SUFFIXES.iter().find(|(_, e)| *e == exponent).map_or("", |(s, _)| *s);
        write!(f, "{number}{suffix}")
    }
}

/// The canonical spelling of a quantity: `0.5` is `500m`, `1024Mi` is `1Gi`.
pub fn canonical(text: &str) -> Result<String, QuantityError> {
    text.parse::<Quantity>().map(|q| q.to_string())
}

fn saturate(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

/// Division that rounds away from zero: a request is never understated.
fn div_up(n: i128, by: i128) -> i128 {
    n / by + if n % by == 0 { 0 } else { n.signum() }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        // Small or fractional binary amounts are written decimal: rounding would change them.
        if self.format != Format::BinarySi || self.nanos.abs() < 1024 * NANO || !self.is_whole() {
            let format = if self.format == Format::BinarySi { Format::DecimalSi } else { self.format };
            return Quantity { format, ..*self }.decimal(f);
        }
        let (mut units, mut power) = (self.nanos / NANO, 0);
        while units % 1024 == 0 && power + 1 < BINARY_SUFFIXES.len() {
            units /= 1024;
            power += 1;
        }
        write!(f, "{units}{}", BINARY_SUFFIXES[power])
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let whole_end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (whole, rest) = rest.split_at(whole_end);
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())),
            None => ("", rest),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(QuantityError::Format);
        }
        let (format, exponent, factor) = interpret(suffix)?;
        let mut nanos = scale(whole, fraction, exponent, factor)?;
        if format == Format::BinarySi {
            nanos = nanos.min(BINARY_UNITS_MAX * NANO);
        }
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// The format a suffix stands for, its power of ten and its binary factor.
fn interpret(suffix: &str) -> Result<(Format, i32, i128), QuantityError> {
    if let Some((_, exponent)) = DECIMAL_SUFFIXES.iter().find(|(s, _)| *s == suffix) {
        return Ok((Format::DecimalSi, *exponent, 1));
    }
    if let Some(power) = BINARY_SUFFIXES.iter().position(|s| *s == suffix) {
        return Ok((Format::BinarySi, 0, 1i128 << (10 * power)));
    }
    let Some(digits) = suffix.strip_prefix(['e', 'E']) else {
        let known = |c: char| "eEinumkKMGTP+-0123456789".contains(c);
        return Err(if suffix.chars().all(known) { QuantityError::Suffix } else { QuantityError::Format });
    };
    let exponent = digits.parse::<i32>().map_err(|_| QuantityError::Suffix)?;
    Ok((Format::DecimalExponent, exponent, 1))
}

/// `whole.fraction * factor * 10^exponent` in nano-units, rounded away from zero where it is finer than a nano-unit.
fn scale(whole: &str, fraction: &str, exponent: i32, factor: i128) -> Result<i128, QuantityError> {
    let digits = || whole.bytes().chain(fraction.bytes()).map(|b| i128::from(b - b'0')).skip_while(|d| *d == 0);
    // Nano-units are reached by moving the decimal point; a negative shift drops digits.
    let point = i64::from(exponent) + 9 - fraction.len() as i64;
    let count = digits().count() as i64;
    if count == 0 {
        return Ok(0);
    }
    let mut mantissa = 0i128;
    let mut dropped = false;
    // Keep guard digits when a binary factor will be multiplied in: 20 digits below a nano-unit are beyond any rounding.
    let kept = if point < -20 { (count + point + 20).max(0) } else { count };
    for (i, digit) in digits().enumerate() {
        if (i as i64) < kept {
            mantissa = mantissa.checked_mul(10).and_then(|m| m.checked_add(digit)).ok_or(QuantityError::TooLarge)?;
        } else {
            dropped |= digit != 0;
        }
    }
    mantissa = mantissa.checked_mul(factor).ok_or(QuantityError::TooLarge)?;
    let shift = point + (count - kept);
    if shift >= 0 {
        let power = u32::try_from(shift).ok().and_then(|s| 10i128.checked_pow(s));
        return power.and_then(|p| mantissa.checked_mul(p)).ok_or(QuantityError::TooLarge);
    }
    // Far below a nano-unit: any amount asked for is at least the smallest one.
    let Some(power) = u32::try_from(-shift).ok().and_then(|s| 10i128.checked_pow(s)) else {
        return Ok(1);
    };
    Ok(mantissa / power + i128::from(dropped || mantissa % power != 0))
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// Sums keep the left side's format, or the right's when the left is zero; they saturate.
impl Add for Quantity {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Self { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl Sub for Quantity {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + -other
    }
}

impl Neg for Quantity {
    type Output = Self;

    fn neg(self) -> Self {
        Self { nanos: self.nanos.saturating_neg(), ..self }
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

impl TryFrom<&k8s_openapi::apimachinery::pkg::api::resource::Quantity> for Quantity {
    type Error = QuantityError;

    fn try_from(q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity) -> Result<Self, QuantityError> {
        q.0.trim().parse()
    }
}

impl From<Quantity> for k8s_openapi::apimachinery::pkg::api::resource::Quantity {
    fn from(q: Quantity) -> Self {
        Self(q.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_forms_are_upstreams() {
        for (text, expect) in [
            ("0", "0"),
            ("0Mi", "0"),
            ("-0", "0"),
            ("1", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("5.", "5"),
            ("1.5", "1500m"),
            ("100m", "100m"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("1024", "1024"),
            ("0.0000000001", "1n"),
            ("1.0000000001", "1000000001n"),
            ("128Mi", "128Mi"),
            ("1024Mi", "1Gi"),
            ("0.5Gi", "512Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.3Gi", "322122547200m"),
            ("1023", "1023"),
            ("0.5Ki", "512"),
            ("1Ki", "1Ki"),
            ("129M", "129M"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e-3", "12e-3"),
            ("1.2e3", "1200"),
            ("2E", "2E"),
            ("100E", "100E"),
            ("8Ei", "9223372036854775807"),
            ("-5", "-5"),
            ("-1.5Gi", "-1536Mi"),
            ("+5", "5"),
            ("00012", "12"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(expect), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "-", ".", "m", "1 Mi", "1mm", "1kB", "Mi", "1e", "1e1e1", "0x10", "1Mi5", "ten", "1e999", "1,5", "--1", "٣"] {
            assert!(canonical(text).is_err(), "{text}");
        }
        assert!("9".repeat(60).parse::<Quantity>().is_err());
        assert_eq!(format!("0.{}1", "0".repeat(80)).parse::<Quantity>().unwrap().as_nanos(), 1);
        assert_eq!("1e-2000000000".parse::<Quantity>().unwrap().as_nanos(), 1);
    }

    #[test]
    fn amounts_compare_add_and_round_up() {
        let q = |s: &str| s.parse::<Quantity>().unwrap();
        assert_eq!(q("1Ki"), q("1024"));
        assert!(q("999m") < q("1"));
        assert_eq!((q("500m") + q("1.5")).to_string(), "2");
        assert_eq!((Quantity::ZERO + q("1Gi")).to_string(), "1Gi");
        assert_eq!((q("2Gi") - q("512Mi")).to_string(), "1536Mi");
        assert_eq!([q("100m"), q("200m")].into_iter().sum::<Quantity>().as_millis(), 300);
        assert_eq!(q("0.1m").as_millis(), 1);
        assert_eq!(q("-0.1m").as_millis(), -1);
        assert_eq!(q("1.5").as_units(), 2);
        assert_eq!(q("64Mi").as_bytes(), 64 << 20);
        assert_eq!(q("100E").as_bytes(), i64::MAX);
        assert_eq!(Quantity::from_bytes(1 << 30).to_string(), "1Gi");
        assert_eq!(Quantity::from_millis(250).times(4).to_string(), "1");
        assert_eq!(Quantity::from_value(&serde_json::json!(0.5)).unwrap().to_string(), "500m");
        assert!(Quantity::from_value(&serde_json::json!(true)).is_err());
    }
}
