//! How certificates stand, and what is wrong with them.

use std::sync::Arc;

use super::{ShowCertificates, status::problem};
use crate::{
    ca::Choice,
    identity::Identities,
    model::{AuthorityStatus, CertificateState, CertificateStatus, Certificates, Problem, Reason, Severity},
};

/// Shows the certificates that `identities` keeps, and who is asked for them.
pub(super) fn show(identities: Arc<Identities>, choice: &Choice) -> ShowCertificates {
    let description = match choice {
        Choice::Embedded(root) => format!("embedded, root in {}", root.display()),
        Choice::Istio(config) => config.address.clone(),
        Choice::Spire(socket) => format!("SPIFFE Workload API at {socket}"),
    };
    Arc::new(move || {
        let certificates = identities.certificates();
        let refusal = certificates.iter().find_map(|certificate| certificate.refusal.as_ref());
        let last_error = refusal.map(|refusal| format!("{}: {}", refusal.reason, refusal.message));
        let description = description.clone();
        let authority = Some(AuthorityStatus { description, is_answering: last_error.is_none(), last_error });
        Certificates { now: 0, authority, certificates }
    })
}

/// Those that have run out, that were never got, and whose renewal is due and fails.
pub(super) fn problems(certificates: &Certificates) -> impl Iterator<Item = Problem> {
    let now = certificates.now;
    certificates.certificates.iter().filter_map(move |certificate| of(certificate, now))
}

fn of(certificate: &CertificateStatus, now: u64) -> Option<Problem> {
    let (issued, expires) = (certificate.issued.unwrap_or(0), certificate.expires.unwrap_or(0));
    let left = expires.saturating_sub(now);
    let why = certificate.refusal.as_ref().map(|refusal| format!(": {}: {}", refusal.reason, refusal.message));
    let (reason, severity, what) = match certificate.state {
        CertificateState::Expired => (Reason::CertificateExpired, Severity::Error, "has run out".to_owned()),
        CertificateState::Valid if expires > 0 && left == 0 => {
            (Reason::CertificateExpired, Severity::Error, "has run out".to_owned())
        }
        CertificateState::TrustUnknown => {
            (Reason::TrustUnknown, Severity::Error, "is of no use: no root is known".to_owned())
        }
        // The first one is on its way.
        CertificateState::Missing => {
            why.as_ref()?;
            (Reason::CertificateMissing, Severity::Error, "was not got".to_owned())
        }
        CertificateState::Valid => {
            why.as_ref()?;
            // A quarter of its life is left: it is time to look.
            let severity = if left < expires.saturating_sub(issued) / 4 { Severity::Error } else { Severity::Warning };
            (Reason::CertificateOverdue, severity, format!("runs out in {} min and is not renewed", left / 60))
        }
    };
    let object = format!("Identity {}", certificate.identity);
    Some(problem(reason, severity, object, format!("its certificate {what}{}", why.unwrap_or_default())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::CertificateRefusal;

    fn certificate(state: CertificateState, expires: u64, is_refused: bool) -> CertificateStatus {
        let refusal =
            || CertificateRefusal { reason: Reason::CaUnreachable, message: "nobody answers".to_owned(), attempts: 3 };
        CertificateStatus {
            identity: "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap(),
            state,
            serial: Some("01".to_owned()),
            issued: Some(1000),
            expires: Some(expires),
            next_rotation: 2000,
            chain: Vec::new(),
            refusal: is_refused.then(refusal),
        }
    }

    #[test]
    fn what_runs_out_is_a_problem_in_time() {
        let (valid, expired, missing) = (CertificateState::Valid, CertificateState::Expired, CertificateState::Missing);
        for (state, expires, is_refused, expected) in [
            (valid, 9000, false, None),
            (missing, 0, false, None),
            (valid, 9000, true, Some((Reason::CertificateOverdue, Severity::Warning))),
            (valid, 3100, true, Some((Reason::CertificateOverdue, Severity::Error))),
            (valid, 3000, true, Some((Reason::CertificateExpired, Severity::Error))),
            (valid, 2999, false, Some((Reason::CertificateExpired, Severity::Error))),
            (expired, 2999, true, Some((Reason::CertificateExpired, Severity::Error))),
            (missing, 0, true, Some((Reason::CertificateMissing, Severity::Error))),
            (CertificateState::TrustUnknown, 9000, false, Some((Reason::TrustUnknown, Severity::Error))),
        ] {
            let found = of(&certificate(state, expires, is_refused), 3000);
            assert_eq!(
                found.as_ref().map(|problem| (problem.reason, problem.severity)),
                expected,
                "{state:?} {expires}"
            );
            assert!(found.is_none_or(|problem| !is_refused || problem.message.contains("nobody answers")));
        }
    }
}
