//! IPv4 ranges.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `10.42.0.0/24`. Host bits are always zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    network: u32,
    prefix: u8,
}

impl Cidr {
    /// Host bits are cut off; a prefix beyond 32 counts as 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { network: u32::from(address) & mask(prefix), prefix }
    }

    pub fn network(self) -> Ipv4Addr {
        self.network.into()
    }

    pub fn prefix(self) -> u8 {
        self.prefix
    }

    pub fn mask(self) -> Ipv4Addr {
        mask(self.prefix).into()
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & mask(self.prefix) == self.network
    }

    pub fn overlaps(self, other: Cidr) -> bool {
        let shorter = self.prefix.min(other.prefix);
        self.network & mask(shorter) == other.network & mask(shorter)
    }

    /// How many addresses there are.
    pub fn size(self) -> u64 {
        1 << (32 - self.prefix)
    }

    /// The n-th address; `None` beyond the end.
    pub fn nth(self, n: u64) -> Option<Ipv4Addr> {
        (n < self.size()).then(|| Ipv4Addr::from(self.network + n as u32))
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an IPv4 range; it should look like 10.42.0.0/24")]
pub struct NotARange(String);

impl FromStr for Cidr {
    type Err = NotARange;

    fn from_str(s: &str) -> Result<Self, NotARange> {
        let parts = s.split_once('/').and_then(|(a, p)| Some((a.parse().ok()?, p.parse().ok()?)));
        match parts {
            Some((address, prefix)) if prefix <= 32u8 => {
                let range = Self::new(address, prefix);
                if range.network() == address { Ok(range) } else { Err(NotARange(s.to_string())) }
            }
            _ => Err(NotARange(s.to_string())),
        }
    }
}

impl Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_parse_contain_and_overlap() {
        let r: Cidr = "10.42.0.0/24".parse().unwrap();
        assert_eq!((r.size(), r.nth(5), r.nth(256)), (256, Some(Ipv4Addr::new(10, 42, 0, 5)), None));
        assert!(r.contains(Ipv4Addr::new(10, 42, 0, 255)) && !r.contains(Ipv4Addr::new(10, 42, 1, 0)));
        assert!(r.overlaps("10.0.0.0/8".parse().unwrap()) && !r.overlaps("10.43.0.0/16".parse().unwrap()));
        assert!(r.overlaps("0.0.0.0/0".parse().unwrap()));
        for bad in ["10.42.0.0", "10.42.0.1/24", "10.42.0.0/33", "fd00::/64", ""] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }
}
