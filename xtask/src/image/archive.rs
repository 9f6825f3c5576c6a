//! tar archives and image layouts, the same bytes for the same files: no times, no users.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::command::{command, output};

const BLOCK: usize = 512;

/// A file of an image.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Without a slash in front.
    pub(super) path: String,
    pub(super) source: PathBuf,
    pub(super) is_program: bool,
}

/// Writes a tar archive (POSIX ustar), with the folders that its files need.
pub(super) fn write_tar(out: &mut impl Write, entries: &[Entry]) -> Result<()> {
    let mut entries = entries.to_vec();
    entries.sort_by(|one, other| one.path.cmp(&other.path));
    let mut made: Vec<String> = Vec::new();
    for entry in &entries {
        let slashes = entry.path.match_indices('/').map(|(at, _)| at);
        for folder in slashes.filter_map(|at| entry.path.get(..=at)) {
            if !made.iter().any(|known| known == folder) {
                out.write_all(&header(folder, b'5', 0o755, 0)?)?;
                made.push(folder.to_owned());
            }
        }
        let mut file = File::open(&entry.source).with_context(|| entry.source.display().to_string())?;
        let length = file.metadata()?.len();
        let mode = if entry.is_program { 0o755 } else { 0o644 };
        out.write_all(&header(&entry.path, b'0', mode, length)?)?;
        ensure!(io::copy(&mut file, out)? == length, "{} changes while it is read", entry.source.display());
        out.write_all(&vec![0; (BLOCK - length as usize % BLOCK) % BLOCK])?;
    }
    Ok(out.write_all(&[0; 2 * BLOCK])?)
}

fn header(path: &str, kind: u8, mode: u32, length: u64) -> Result<[u8; BLOCK]> {
    ensure!(path.len() <= 100, "the path {path} is too long for a plain tar header");
    let mut header = [0; BLOCK];
    let mut put = |at: usize, text: &str| {
        for (to, from) in header.iter_mut().skip(at).zip(text.bytes()) {
            *to = from;
        }
    };
    put(0, path);
    put(100, &format!("{mode:07o}"));
    put(108, &format!("{:07o}", 0));
    put(116, &format!("{:07o}", 0));
    put(124, &format!("{length:011o}"));
    put(136, &format!("{:011o}", 0));
    put(148, "        ");
    put(156, char::from(kind).encode_utf8(&mut [0; 4]));
    put(257, "ustar\0");
    put(263, "00");
    // The sum of all bytes, its own field taken as spaces.
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    for (to, from) in header.iter_mut().skip(148).zip(format!("{sum:06o}\0 ").bytes()) {
        *to = from;
    }
    Ok(header)
}

/// Digest and length of a file.
fn digest(path: &Path) -> Result<(String, u64)> {
    let sum = output(command("sha256sum", &["--binary"]).arg(path))?;
    let hex = sum.split_whitespace().next().context("sha256sum says nothing")?;
    Ok((hex.trim_start_matches('\\').to_owned(), fs::metadata(path)?.len()))
}

/// What an image is called, and what runs in it.
#[derive(Clone, Debug)]
pub(super) struct About {
    /// As in `docker.io/library/mesh-agent:0.1.0`.
    pub(super) name: String,
    /// As Go names it.
    pub(super) architecture: String,
    pub(super) version: String,
}

/// Writes an image with one layer: an OCI layout, with the list that `docker load` reads beside it.
pub(super) fn write_image(to: &Path, scratch: &Path, about: &About, files: &[Entry]) -> Result<()> {
    let blobs = scratch.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let mut entries = Vec::new();
    let mut keep = |made: &Path| -> Result<(String, u64)> {
        let (hex, length) = digest(made)?;
        let path = blobs.join(&hex);
        fs::rename(made, &path)?;
        entries.push(Entry { path: format!("blobs/sha256/{hex}"), source: path, is_program: false });
        Ok((hex, length))
    };
    let made = scratch.join("made");
    let mut file = io::BufWriter::new(File::create(&made)?);
    write_tar(&mut file, files)?;
    file.into_inner().context("the layer")?.sync_all()?;
    let (layer, layer_length) = keep(&made)?;
    let mut keep_json = |value: &Value| {
        fs::write(&made, value.to_string())?;
        keep(&made)
    };
    let config = json!({
        "architecture": about.architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": ["/mesh-agent"],
            "Env": ["PATH=/"],
            "WorkingDir": "/",
            "Labels": {
                "org.opencontainers.image.title": "mesh-agent",
                "org.opencontainers.image.version": about.version,
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer}")]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image"}],
    });
    let (config, config_length) = keep_json(&config)?;
    let kind = |name: &str| format!("application/vnd.oci.image.{name}");
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": kind("manifest.v1+json"),
        "config": {"mediaType": kind("config.v1+json"), "digest": format!("sha256:{config}"), "size": config_length},
        "layers": [
            {"mediaType": kind("layer.v1.tar"), "digest": format!("sha256:{layer}"), "size": layer_length},
        ],
    });
    let (manifest, manifest_length) = keep_json(&manifest)?;
    let tag = about.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": kind("index.v1+json"),
        "manifests": [{
            "mediaType": kind("manifest.v1+json"),
            "digest": format!("sha256:{manifest}"),
            "size": manifest_length,
            "platform": {"architecture": about.architecture, "os": "linux"},
            // The first is containerd's, which imports under this name; the second everybody else's.
            "annotations": {"io.containerd.image.name": about.name, "org.opencontainers.image.ref.name": tag},
        }],
    });
    let docker = json!([{
        "Config": format!("blobs/sha256/{config}"),
        "RepoTags": [about.name.trim_start_matches("docker.io/library/")],
        "Layers": [format!("blobs/sha256/{layer}")],
    }]);
    for (name, value) in
        [("oci-layout", json!({"imageLayoutVersion": "1.0.0"})), ("index.json", index), ("manifest.json", docker)]
    {
        fs::write(scratch.join(name), value.to_string())?;
        entries.push(Entry { path: name.to_owned(), source: scratch.join(name), is_program: false });
    }
    let mut out = io::BufWriter::new(File::create(to).with_context(|| format!("cannot write {}", to.display()))?);
    write_tar(&mut out, &entries)?;
    out.flush().with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn read(folder: &Path, name: &str) -> Value {
        serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
    }

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("mesh-image-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn untar(archive: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        let status = Command::new("tar").arg("xf").arg(archive).arg("-C").arg(to).status().unwrap();
        assert!(status.success());
    }

    /// What docker and containerd do: from the names to the bytes, each checked against its digest.
    #[test]
    fn an_image_is_read_back_and_is_the_same_the_next_time() {
        let folder = scratch("read-back");
        fs::write(folder.join("program"), vec![7; 1000]).unwrap();
        fs::write(folder.join("empty"), "").unwrap();
        let entry = |path: &str, source: &str, is_program| Entry {
            path: path.to_owned(),
            source: folder.join(source),
            is_program,
        };
        let files = [entry("mesh-agent", "program", true), entry("lib64/deep/empty", "empty", false)];
        let about = About {
            name: "docker.io/library/mesh-agent:test".to_owned(),
            architecture: "amd64".to_owned(),
            version: "0.0.0".to_owned(),
        };
        let images = ["one", "two"].map(|name| {
            let (tar, work) = (folder.join(format!("{name}.tar")), folder.join(name));
            fs::create_dir(&work).unwrap();
            write_image(&tar, &work, &about, &files).unwrap();
            tar
        });
        let [one, two] = &images;
        assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());

        let image = folder.join("image");
        untar(one, &image);
        assert_eq!(read(&image, "oci-layout")["imageLayoutVersion"], "1.0.0");
        let index = read(&image, "index.json");
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], about.name);
        let blob = |descriptor: &Value| {
            let hex = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
            let path = image.join("blobs/sha256").join(&hex);
            assert_eq!(digest(&path).unwrap(), (hex, descriptor["size"].as_u64().unwrap()));
            path
        };
        let manifest: Value = serde_json::from_slice(&fs::read(blob(&index["manifests"][0])).unwrap()).unwrap();
        let config: Value = serde_json::from_slice(&fs::read(blob(&manifest["config"])).unwrap()).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        assert_eq!(config["config"]["Entrypoint"], json!(["/mesh-agent"]));
        let docker = read(&image, "manifest.json");
        assert_eq!(docker[0]["RepoTags"], json!(["mesh-agent:test"]));
        for path in [&docker[0]["Config"], &docker[0]["Layers"][0]] {
            assert!(image.join(path.as_str().unwrap()).is_file(), "{path}");
        }
        let root = folder.join("root");
        untar(&blob(&manifest["layers"][0]), &root);
        assert_eq!(fs::read(root.join("mesh-agent")).unwrap(), vec![7; 1000]);
        assert_eq!(fs::read(root.join("lib64/deep/empty")).unwrap(), b"");
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(root.join("mesh-agent")).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o755);
        fs::remove_dir_all(&folder).unwrap();
    }
}
