//! Who is on the other side of a connection.

use std::net::SocketAddr;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::pki::SKEW;
use crate::auth::User;

/// The other side of a connection; an extension of every request that came over one.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it is.
    pub address: SocketAddr,
    /// Who it has proved to be, if it has.
    pub certificate: Option<Certified>,
}

/// Who a verified certificate names, as in Kubernetes: the common name is the user, organizations are its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// Who.
    pub user: User,
    /// When it was made.
    pub issued_at: Timestamp,
    /// Until when. A connection may outlast the certificate that it was opened with.
    pub not_after: Timestamp,
}

impl Certified {
    /// Reads a certificate whose signature was verified; `None`: it names nobody.
    pub fn read(certificate: &CertificateDer<'_>) -> Option<Certified> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let mut names = subject.iter_common_name();
        let name = names.next()?.as_str().ok()?;
        if name.is_empty() || names.next().is_some() {
            return None;
        }
        let groups: Result<Vec<String>, _> = subject
            .iter_organization()
            .map(|group| group.as_str().map(str::to_owned))
            .collect();
        Some(Certified {
            user: User {
                name: name.to_owned(),
                groups: groups.ok()?,
                ..User::default()
            },
            issued_at: Timestamp::from_second(certificate.validity().not_before.timestamp()).ok()? + SKEW,
            not_after: Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()?,
        })
    }
}
