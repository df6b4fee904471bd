//! Fields that a peer says of itself and control passes on as they are. One that can't be read mustn't take the netmap of
//! everybody else with it.

use std::fmt;
use std::net::SocketAddr;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};

use super::RegionId;

/// A home region. Go's is an `int`; one that no relay can have is none.
pub(super) fn region<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RegionId, D::Error> {
    let number = Option::<i64>::deserialize(deserializer)?.unwrap_or_default();
    Ok(RegionId::try_from(number).unwrap_or_default())
}

/// Endpoints. Go's may have a zone with a name, which means something on that peer alone; what can't be read is left out.
pub(super) fn endpoints<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    Ok(endpoints_if_told(deserializer)?.unwrap_or_default())
}

/// The same, and `None` where there is no list.
pub(super) fn endpoints_if_told<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<SocketAddr>>, D::Error> {
    let list = Option::<Vec<Endpoint>>::deserialize(deserializer)?;
    Ok(list.map(|list| list.into_iter().filter_map(|endpoint| endpoint.0).collect()))
}

struct Endpoint(Option<SocketAddr>);

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(EndpointVisitor)
    }
}

struct EndpointVisitor;

impl Visitor<'_> for EndpointVisitor {
    type Value = Endpoint;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address and a port")
    }

    fn visit_str<E>(self, text: &str) -> Result<Endpoint, E> {
        Ok(Endpoint(text.parse().ok()))
    }
}
