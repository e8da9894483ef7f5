//! Who a certificate speaks for.

use std::fmt;
use std::str::FromStr;

use lifeboat_model::{IdError, ServerId};
use serde::{Deserialize, Serialize};

/// Characters in the longest name of a process server or an operator.
pub const NAME_CHARS_MAX: usize = 63;

const SCHEME: &str = "lifeboat://";

/// Who a certificate speaks for. It stands in the certificate as its one URI, such as
/// `lifeboat://agent/000000000000beef`, `lifeboat://process-server/hall-2`, `lifeboat://vault`
/// or `lifeboat://operator/anna`.
///
/// Names are 1 to 63 of `a-z 0-9 . _ -` and begin with a letter or digit, so that no two names
/// look alike. A name put into the variant by hand is checked when a certificate is issued.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Identity {
    /// The agent of one protected server.
    Agent(ServerId),
    /// A process server, by name.
    ProcessServer(String),
    /// The vault.
    Vault,
    /// A person or a program that acts for one, by name.
    Operator(String),
}

/// The text is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It is not one of the four forms.
    #[error(
        "an identity is lifeboat://agent/ID, lifeboat://process-server/NAME, lifeboat://vault or \
         lifeboat://operator/NAME, not {0:?}"
    )]
    Form(String),
    /// The name in it is not allowed.
    #[error(
        "a name is 1 to {NAME_CHARS_MAX} of a-z 0-9 . _ - and begins with a letter or digit; {0:?} is not"
    )]
    Name(String),
    /// The server's id in it is not one.
    #[error(transparent)]
    Server(#[from] IdError),
}

impl Identity {
    /// The role alone, as a person reads it: `an agent`, `a process server`, `the vault`, `an operator`.
    #[must_use]
    pub const fn role(&self) -> &'static str {
        match self {
            Self::Agent(_) => "an agent",
            Self::ProcessServer(_) => "a process server",
            Self::Vault => "the vault",
            Self::Operator(_) => "an operator",
        }
    }

    /// Whether the name in it, if it has one, is allowed.
    ///
    /// # Errors
    /// When it is not.
    pub fn check(&self) -> Result<(), IdentityError> {
        match self {
            Self::Agent(_) | Self::Vault => Ok(()),
            Self::ProcessServer(name) | Self::Operator(name) => checked_name(name).map(drop),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agent(server) => write!(f, "{SCHEME}agent/{server}"),
            Self::ProcessServer(name) => write!(f, "{SCHEME}process-server/{name}"),
            Self::Vault => write!(f, "{SCHEME}vault"),
            Self::Operator(name) => write!(f, "{SCHEME}operator/{name}"),
        }
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let form = || IdentityError::Form(shortened(text));
        let rest = text.strip_prefix(SCHEME).ok_or_else(form)?;
        match rest.split_once('/') {
            None if rest == "vault" => Ok(Self::Vault),
            Some(("agent", id)) => Ok(Self::Agent(id.parse()?)),
            Some(("process-server", name)) => checked_name(name).map(Self::ProcessServer),
            Some(("operator", name)) => checked_name(name).map(Self::Operator),
            _ => Err(form()),
        }
    }
}

impl TryFrom<String> for Identity {
    type Error = IdentityError;

    fn try_from(text: String) -> Result<Self, IdentityError> {
        text.parse()
    }
}

impl From<Identity> for String {
    fn from(identity: Identity) -> Self {
        identity.to_string()
    }
}

fn checked_name(name: &str) -> Result<String, IdentityError> {
    let first_ok = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let all_ok = name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'));
    if first_ok && all_ok && name.len() <= NAME_CHARS_MAX {
        Ok(name.to_owned())
    } else {
        Err(IdentityError::Name(shortened(name)))
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identities() -> impl Strategy<Value = Identity> {
        let name = "[a-z0-9][a-z0-9._-]{0,62}";
        prop_oneof![
            any::<u64>().prop_map(|number| Identity::Agent(ServerId::new(number))),
            name.prop_map(Identity::ProcessServer),
            Just(Identity::Vault),
            name.prop_map(Identity::Operator),
        ]
    }

    proptest! {
        #[test]
        fn text_and_identity_turn_into_each_other(identity in identities()) {
            prop_assert!(identity.check().is_ok());
            prop_assert_eq!(identity.to_string().parse::<Identity>(), Ok(identity));
        }

        #[test]
        fn what_parses_has_one_spelling(text in "(lifeboat://)?(agent/|vault|operator/|process-server/)?.{0,70}") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }

        #[test]
        fn any_text_is_answered(text in any::<String>()) {
            let _ = text.parse::<Identity>();
        }
    }

    #[test]
    fn near_misses_are_refused() {
        let long = format!("lifeboat://operator/{}", "a".repeat(64));
        for text in [
            "",
            "lifeboat://",
            "lifeboat://vault/",
            "lifeboat://vault/x",
            "LIFEBOAT://vault",
            "lifeboat://agent/beef",
            "lifeboat://agent/000000000000BEEF",
            "lifeboat://agent/000000000000beef/",
            "lifeboat://operator/",
            "lifeboat://operator/Anna",
            "lifeboat://operator/-rf",
            "lifeboat://operator/a b",
            "lifeboat://operator/a/b",
            "lifeboat://operator/a%2e",
            "lifeboat://operator/anna\0",
            "lifeboat://root/anna",
            long.as_str(),
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text:?}");
        }
        assert!(Identity::Operator("Über".into()).check().is_err());
    }
}
