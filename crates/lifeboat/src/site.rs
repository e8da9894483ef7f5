//! Which site a command speaks to: `--site`, `LIFEBOAT_SITE`, or the one used last.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use lifeboat_client::Vault;
use serde::{Deserialize, Serialize};

use crate::arguments::SiteArguments;
use crate::failure::Failure;

/// The name of the file in a site's directory that says where its vault is.
const SITE_FILE: &str = "site.toml";

/// What is needed to speak to a site's vault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// The vault's URL.
    pub vault: String,
    /// The operator's certificate; relative to the directory of the file.
    pub credentials: PathBuf,
}

impl Site {
    /// Reads `site.toml` in `dir`, or in `site` in it: `cargo xtask up` keeps the site there, beside
    /// its demonstration.
    pub fn of_dir(dir: &Path) -> Result<Self, Failure> {
        let below = dir.join("site");
        let dir = if !dir.join(SITE_FILE).exists() && below.join(SITE_FILE).exists() { &below } else { dir };
        let file = dir.join(SITE_FILE);
        let text = fs::read_to_string(&file).map_err(|error| {
            Failure::new(format!(
                "{} is no site's directory: cannot read {}: {error}; name the directory that `lifeboat trial` was given, or the vault's URL",
                dir.display(),
                file.display()
            ))
        })?;
        let site: Self = toml::from_str(&text)
            .map_err(|error| Failure::new(format!("{} is damaged: {}", file.display(), error.message())))?;
        Ok(Self { credentials: absolute(&dir.join(site.credentials))?, ..site })
    }

    /// Writes `site.toml` into `dir`, with `credentials` relative to it.
    pub fn write(&self, dir: &Path) -> Result<(), Failure> {
        Ok(lifeboat_trust::private_file::write_durably(
            &dir.join(SITE_FILE),
            toml::to_string(self)?.as_bytes(),
        )?)
    }

    /// Opens the way to the vault.
    pub fn connect(&self) -> Result<Vault, Failure> {
        Ok(Vault::connect(&self.vault, &self.credentials)?)
    }
}

/// Finds the site and opens the way to its vault; remembers a site that was named for the next command.
pub fn connect(arguments: &SiteArguments) -> Result<Vault, Failure> {
    Ok(connect_to(arguments)?.1)
}

/// As [`connect`], and says which site it is.
pub fn connect_to(arguments: &SiteArguments) -> Result<(Site, Vault), Failure> {
    let site = find(arguments)?;
    let vault = site.connect()?;
    // One from the environment is meant for as long as that says so.
    if arguments.site.is_some() {
        remember(&site);
    }
    Ok((site, vault))
}

/// Makes `site` the one that commands use when none is named. Without a home directory nothing is remembered.
pub fn remember(site: &Site) {
    let Some(file) = context_file() else { return };
    if let (Some(dir), Ok(text)) = (file.parent(), toml::to_string(site)) {
        let _ = fs::create_dir_all(dir);
        let _ = fs::write(&file, text);
    }
}

fn find(arguments: &SiteArguments) -> Result<Site, Failure> {
    match arguments.site.clone().or_else(|| environment("LIFEBOAT_SITE")) {
        Some(url) if url.starts_with("https://") => {
            let credentials = arguments
                .credentials
                .clone()
                .or_else(|| environment("LIFEBOAT_CREDENTIALS").map(PathBuf::from))
                .or_else(|| remembered().filter(|site| site.vault == url).map(|site| site.credentials));
            let credentials = credentials.ok_or_else(|| {
                Failure::new(format!("to speak to {url} an operator's certificate is needed: name its directory with --credentials"))
            })?;
            Ok(Site { vault: url, credentials: absolute(&credentials)? })
        }
        Some(url) if url.contains("://") => {
            Err(Failure::new(format!("{url} is no vault's URL: it must begin with https://")))
        }
        Some(dir) => Site::of_dir(Path::new(&dir)),
        None => remembered().ok_or_else(|| {
            Failure::new("which site? name its directory or its vault's URL with --site or in LIFEBOAT_SITE")
        }),
    }
}

/// A variable that is set to something.
fn environment(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn remembered() -> Option<Site> {
    toml::from_str(&fs::read_to_string(context_file()?).ok()?).ok()
}

fn context_file() -> Option<PathBuf> {
    let config = env::var_os("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".config")))?;
    Some(config.join("lifeboat/site.toml"))
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::new(format!("cannot find {}: {error}", path.display())))
}
