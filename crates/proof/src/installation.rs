//! The agent installed on a machine over SSH, as an operator would.

use std::fs;
use std::path::Path;

use crate::{Programs, Ssh, run, scratch};

const UNIT: &str = include_str!("../../agent/lifeboat-agent.service");
const FIT_UNIT: &str = include_str!("../../agent/lifeboat-fit.service");

/// Where files go on the machine, below its root.
const PROGRAM: &str = "usr/local/sbin/lifeboat-agent";
const SETTINGS: &str = "etc/lifeboat";
const SERVICE: &str = "etc/systemd/system/lifeboat-agent.service";
const FIT_SERVICE: &str = "etc/systemd/system/lifeboat-fit.service";

/// Installs the agent as a service and starts it. `prepared` holds its settings and certificate, as
/// `lifeboat trial --remote-agent` makes them. Doing it again brings the newest of everything.
pub fn install_agent(ssh: &Ssh, prepared: &Path) {
    let dir = tempfile::Builder::new().prefix("lifeboat-install-").tempdir_in(scratch()).unwrap();
    let program = dir.path().join(PROGRAM);
    let service = dir.path().join(SERVICE);
    for file in [&program, &service] {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
    }
    // Without what is for debuggers it is a tenth of the size.
    let agent = Programs::find().agent;
    run("strip", ["-o".as_ref(), program.as_os_str(), agent.as_os_str()]);
    fs::write(&service, UNIT).unwrap();
    fs::write(dir.path().join(FIT_SERVICE), FIT_UNIT).unwrap();
    let settings = dir.path().join(SETTINGS);
    run("cp", ["-r".as_ref(), prepared.as_os_str(), settings.as_os_str()]);
    ssh.copy(dir.path(), &[PROGRAM, SETTINGS, SERVICE, FIT_SERVICE]);
    // A type=notify service has started when the agent says so.
    ssh.run("systemctl daemon-reload && systemctl enable --quiet lifeboat-agent lifeboat-fit && systemctl restart lifeboat-agent");
}
