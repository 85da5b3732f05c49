//! The data directory: who holds it, what must be in it, and the demo app's credentials.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};

use super::doors::Addresses;
use crate::{
    admin::AdminFile,
    base::{
        keys::{NodeKeys, write_private},
        tasks,
    },
    config::{self, LongTermStore},
    longterm::{LongTerm, embedded::Embedded, postgres::Postgres},
    service::{Service, apps::NewApp, records::AliasPolicy},
};

/// Makes the directory, for its owner alone, if it is not there.
pub(super) fn make(data: &Path) -> anyhow::Result<()> {
    let mut private = fs::DirBuilder::new();
    private.recursive(true).mode(0o700);
    private.create(data).with_context(|| data.display().to_string())
}

/// Holds the directory for this process; `None` if another one does.
pub(super) fn try_lock(data: &Path) -> anyhow::Result<Option<File>> {
    let file = open_lock(data)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).context(data.display().to_string()),
    }
}

/// The same, or an error with what to do.
pub(super) fn lock(data: &Path) -> anyhow::Result<File> {
    try_lock(data)?.with_context(|| {
        format!(
            "{}: another carillon runs on this data directory; stop it, take over from it with --takeover, or take --data DIR",
            data.display()
        )
    })
}

/// The same, once the process that holds it has ended.
pub(super) async fn lock_within(data: &Path, wait: Duration) -> anyhow::Result<File> {
    let file = open_lock(data)?;
    let locked = tasks::blocking(move || file.lock().map(|()| file));
    match tokio::time::timeout(wait, locked).await {
        Ok(locked) => locked.with_context(|| data.display().to_string()),
        Err(_) => bail!("{}: the old process still holds it after {wait:?}", data.display()),
    }
}

fn open_lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join("lock");
    let opened = File::options().create(true).truncate(false).write(true).open(&path);
    opened.with_context(|| path.display().to_string())
}

/// Keys and store are made at the first start only: what is missing later was lost, and a
/// new one in its place would know no device.
pub(super) fn load_keys(data: &Path) -> anyhow::Result<NodeKeys> {
    let lost = |name: &str, beside: &str| {
        let (path, beside) = (data.join(name), data.join(beside));
        if beside.exists() && !path.exists() {
            let (path, beside) = (path.display(), beside.display());
            bail!("{path}: missing beside {beside}, restore it from a backup");
        }
        Ok(())
    };
    lost("keys", "store")?;
    lost("store", "commit-mark")?;
    Ok(NodeKeys::load_or_create(&data.join("keys"))?)
}

/// Opens the store that the configuration names. PostgreSQL is not reached yet: a node starts
/// without it.
///
/// # Errors
/// What is wrong with the files or settings.
pub(super) fn open_longterm(
    config: &config::LongTerm,
    data: &Path,
) -> anyhow::Result<Arc<dyn LongTerm>> {
    match config.store {
        LongTermStore::Embedded => {
            let dir = data.join("longterm");
            let opened = Embedded::open(&dir, config.cache_bytes);
            Ok(Arc::new(opened.with_context(|| dir.display().to_string())?))
        }
        LongTermStore::Postgres => {
            let file = &config.postgres_url_file;
            let url = match config.postgres_url.as_str() {
                "" => fs::read_to_string(file).with_context(|| file.display().to_string())?,
                url => url.to_owned(),
            };
            let ca = Some(config.postgres_ca.as_path()).filter(|ca| !ca.as_os_str().is_empty());
            let timeout = Duration::from_millis(config.postgres_timeout_ms);
            let postgres = Postgres::new(url.trim(), ca, timeout).map_err(anyhow::Error::msg);
            Ok(Arc::new(postgres.context("[longterm]")?))
        }
    }
}

pub(super) fn forget_admin_file(data: &Path) -> anyhow::Result<()> {
    let path = AdminFile::path(data);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context(path.display().to_string())
        }
        _ => Ok(()),
    }
}

/// Makes the demo app at the first start and reads its credentials later.
pub(super) async fn demo_app(
    service: &Arc<Service>,
    data: &Path,
) -> anyhow::Result<Option<NewApp>> {
    let path = data.join("demo-app.json");
    let written = match fs::read(&path) {
        Ok(text) => Some(serde_json::from_slice(&text).context(path.display().to_string())?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).context(path.display().to_string()),
    };
    if !service.apps()?.is_empty() {
        return Ok(written);
    }
    // The file first: a crash between the two leaves credentials that the next start uses.
    let demo = match written {
        Some(demo) => demo,
        None => {
            let demo = NewApp::random(DEMO_APP.parse()?);
            write_private(&path, &serde_json::to_vec(&demo)?)?;
            demo
        }
    };
    service.create_app_as(&demo, AliasPolicy::Open).await?;
    Ok(Some(demo))
}

/// Three lines that can be pasted, for whoever starts a node by hand. They read the secrets
/// from their file, because what is printed may end in a log.
pub(super) fn print_first_steps(data: &Path, addresses: &Addresses) {
    let (Some(mqtt), Some(https)) = (addresses.get("mqtt"), addresses.get("https")) else { return };
    let (data, port) = (data.display(), mqtt.port());
    let host = mqtt.ip();
    let curl = format!("curl -sS --cacert {data}/tls/ca.pem");
    let demo = format!("{data}/demo-app.json");
    let create = format!(
        "f() {{ sed \"s/.*\\\"$1\\\":\\\"\\([^\\\"]*\\)\\\".*/\\1/\"; }}; D=$({curl} https://{https}/v1/devices -H 'content-type: application/json' -d '{{\"app_id\":\"demo\",\"app_key\":\"'\"$(f app_key <{demo})\"'\",\"register\":true}}'); d() {{ echo \"$D\" | f $1; }}; echo \"$D\""
    );
    let receive = format!(
        "mosquitto_sub -h {host} -p {port} -V mqttv5 -i \"$(d device_id)\" -u \"$(d device_id)\" -P \"$(d secret)\" -c -x 86400 -q 1 -t push &"
    );
    let send = format!(
        "{curl} https://{https}/v1/apps/demo/messages -H \"authorization: Bearer $(f app_secret <{demo})\" -H 'content-type: application/json' -d '{{\"target\":{{\"regids\":[\"'\"$(d regid)\"'\"]}},\"payload\":{{\"hello\":\"world\"}}}}'"
    );
    let text = format!(
        "Try it, in another terminal in this directory:\n\n{create}\n{receive}\n{send}\n\n"
    );
    // Nobody may listen, and the node runs all the same.
    drop(io::stdout().write_all(text.as_bytes()));
}

/// The app that the first start makes, to try things.
const DEMO_APP: &str = "demo";
