//! Which shared libraries programs need.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use elf::ElfBytes;
use elf::abi;
use elf::endian::LittleEndian;

/// Sonames that an ELF file names, and its program interpreter. Nothing for other files.
fn needed(bytes: &[u8]) -> Result<Vec<String>> {
    if !bytes.starts_with(&abi::ELFMAGIC) {
        return Ok(Vec::new());
    }
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes)?;
    let common = file.find_common_data()?;
    let (Some(dynamic), Some(strings)) = (common.dynamic, common.dynsyms_strs) else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in dynamic.iter().filter(|entry| entry.d_tag == abi::DT_NEEDED) {
        names.push(strings.get(entry.d_val() as usize)?.to_owned());
    }
    Ok(names)
}

/// Everything that `roots` (path and contents) need, directly or not. `find` gives the
/// contents of a library.
pub(crate) fn closure<'r, 'l>(
    roots: impl Iterator<Item = (&'r str, &'r [u8])>,
    extra: &[String],
    find: impl Fn(&str) -> Option<&'l [u8]>,
) -> Result<BTreeSet<String>> {
    let mut open: Vec<(String, String)> =
        extra.iter().map(|soname| (soname.clone(), "image.list".into())).collect();
    for (path, bytes) in roots {
        let names = needed(bytes).with_context(|| format!("cannot read {path}"))?;
        open.extend(names.into_iter().map(|name| (name, path.to_owned())));
    }
    let mut closed = BTreeSet::new();
    while let Some((soname, by)) = open.pop() {
        if closed.contains(&soname) {
            continue;
        }
        let bytes = find(&soname).with_context(|| {
            format!(
                "{by} needs {soname}, which is in no package with a `libraries` line in \
                 xen-configs/image.list: add its package"
            )
        })?;
        let names = needed(bytes).with_context(|| format!("cannot read {soname}"))?;
        open.extend(names.into_iter().map(|name| (name, soname.clone())));
        closed.insert(soname);
    }
    Ok(closed)
}

/// The `depends=` of a kernel module.
pub(crate) fn module_depends(bytes: &[u8]) -> Result<Vec<String>> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(bytes)?;
    let section = file.section_header_by_name(".modinfo")?.context("no .modinfo section")?;
    let (info, _) = file.section_data(&section)?;
    let depends = info
        .split(|&byte| byte == 0)
        .find_map(|entry| entry.strip_prefix(b"depends="))
        .context("no `depends` in .modinfo")?;
    let depends = std::str::from_utf8(depends)?;
    Ok(depends.split(',').filter(|name| !name.is_empty()).map(String::from).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_needs_nothing() {
        assert!(needed(b"#!/bin/sh\n").unwrap().is_empty());
    }

    #[test]
    fn this_test_needs_the_c_library() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(needed(&program).unwrap().iter().any(|name| name == "libc.so.6"));
    }

    #[test]
    fn a_missing_library_is_named_with_who_needs_it() {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let roots = [("/usr/sbin/tool", &program[..])];
        let error = closure(roots.into_iter(), &[], |_| None).unwrap_err().to_string();
        assert!(error.contains("/usr/sbin/tool") && error.contains("image.list"), "{error}");
    }
}
