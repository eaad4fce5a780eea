//! The files of `resources/cluster`, by the schemas and parsers that there are; and JUnit's reports.

use std::path::PathBuf;

use tests::harness::{AMBA_DMA, Board, TestResult};
use tests::setup::workspace;

use crate::tools::{Scratch, command, output, tools};

fn file(name: &str) -> PathBuf {
    workspace::root().join("resources/cluster").join(name)
}

/// Kubernetes' own schemas, without properties that they don't have. What isn't there is told by a name that
/// is misspelt.
const KUBERNETES: &str = "
import copy, sys, kubernetes_validate, yaml
documents = list(yaml.safe_load_all(open(sys.argv[1])))
assert [document['kind'] for document in documents] == ['ConfigMap', 'Job'], documents
for document in documents:
    kubernetes_validate.validate(document, '1.37', strict=True)
wrong = copy.deepcopy(documents[1])
container = wrong['spec']['template']['spec']['containers'][0]
container['resource'] = container.pop('resources')
try:
    kubernetes_validate.validate(wrong, '1.37', strict=True)
    sys.exit('a misspelt name is taken')
except kubernetes_validate.ValidationError:
    pass
plugin = yaml.safe_load(documents[0]['data']['config.yaml'])
offered = {plugin['domain'] + '/' + device['name'] for device in plugin['devices']}
limits = documents[1]['spec']['template']['spec']['containers'][0]['resources']['limits']
asked = {name for name in limits if '/' in name}
assert asked == offered, (asked, offered)
print(documents[1]['spec']['template']['spec']['containers'][0]['args'])
";

/// The schema of the Container Device Interface.
const CDI: &str = "
import json, pathlib, sys, jsonschema, referencing, referencing.jsonschema
specification, schemas = json.load(open(sys.argv[1])), pathlib.Path(sys.argv[2])
schema, definitions = [json.loads((schemas / name).read_text()) for name in ('schema.json', 'defs.json')]
def resource(contents):
    return referencing.Resource.from_contents(contents, referencing.jsonschema.DRAFT7)
registry = referencing.Registry(retrieve=lambda uri: resource(definitions))
validator = jsonschema.Draft7Validator(schema, registry=registry)
validator.validate(specification)
specification['devices'][0]['containerEdits']['deviceNodes'][0]['permissions'] = 7
assert not validator.is_valid(specification)
";

/// A parser of HashiCorp's language, and what Nomad takes of a task of raw_exec.
const NOMAD: &str = "
import hcl2, sys
job = hcl2.load(open(sys.argv[1]))['job'][0]
(name, job), = job.items()
group, = job['group'][0].values()
task, = group['task'][0].values()
unquoted = lambda value: value.strip('\"')
assert unquoted(task['driver']) == 'raw_exec', task
config = task['config'][0]
assert set(key for key in config if not key.startswith('__')) == {'command', 'args'}, config
print(unquoted(config['command']), *[unquoted(word) for word in config['args']])
";

#[test]
fn manifests_follow_their_schemas() -> TestResult {
    let Some(tools) = tools() else { return Ok(()) };
    let scratch = Scratch::new("clusters");
    let python = |script: &str, arguments: &[PathBuf]| {
        let mut python = command(&tools, &scratch, "python3");
        python.args(["-c", script]).args(arguments);
        output(python)
    };
    python(CDI, &[file("cdi.json"), tools.join("schemas")]);
    // What `strait device list --cdi` prints (golden.rs).
    let listed = workspace::root().join("tests/tests/golden/list-cdi.txt");
    python(CDI, &[listed, tools.join("schemas")]);
    let pod = python(KUBERNETES, &[file("kubernetes.yaml")]);
    let task = python(NOMAD, &[file("strait.nomad.hcl")]);
    // strait itself takes the options, as far as that can be known without the files.
    let host = Board::new().boot()?;
    let words = |text: &str| {
        text.replace(['[', ']', ',', '\'', '"'], " ").replace("${NOMAD_TASK_DIR}", "/tmp")
    };
    for said in [pod, task] {
        let words = words(&said);
        let options = words.split_once("run ").map_or("", |(_, options)| options).trim();
        let options =
            options.replace("/guest/Image", "/k/model").replace("/srv/guest/Image", "/k/model");
        let answer = host.run(&format!("strait run {} --print-config", options.trim()))?;
        assert_eq!(answer.status, 0, "{options}: {answer:?}");
    }
    Ok(())
}

/// A root as the image in `Containerfile` has it: the binary, a directory for files, and what an engine puts
/// there, with the devices that `cdi.json` names.
const CONTAINER: &str = "\
mkdir -p /c/tmp /c/proc /c/sys /c/guest /c/dev/vfio && mount -o bind /c /c && cp /bin/strait /c/
cp /k/model /c/guest/Image && cp /k/guest.cpio /c/guest/rootfs.cpio.gz
for file in kvm iommu; do touch /c/dev/$file && mount -o bind /dev/$file /c/dev/$file; done
mount -o bind /dev/vfio /c/dev/vfio
mount -t proc -o ro proc /c/proc && mount -o bind,ro /sys /c/sys";

/// A PCI function.
const FUNCTION: &str = "0000:00:05.0";

#[test]
fn the_binary_is_all_that_a_container_needs() -> TestResult {
    let host = Board::new().device("edu,addr=5").boot()?;
    host.bind(AMBA_DMA[0])?;
    host.bind(FUNCTION)?;
    host.sh(&format!("set -e\n{CONTAINER}"))?;
    let run = |what: &str| {
        let enter = "cd /c && mount -o move . / && exec chroot .";
        host.run(&format!("unshare -m sh -c '{enter} /strait {what} 2>&1'"))
    };
    let guest = "run --kernel /guest/Image --initrd /guest/rootfs.cpio.gz --until READY";
    let answer = run(&format!("{guest} --vfio-platform {}", AMBA_DMA[0]))?;
    assert_eq!(answer.status, 0, "{answer:?}");
    assert!(answer.output.contains("Loaded driver for PL330"), "{answer:?}");
    // Engines hide the host's device tree unless told otherwise: a PCI function is described without it.
    host.sh("mount -t tmpfs -o ro none /c/sys/firmware")?;
    let answer = run(&format!("{guest} --vfio-pci {FUNCTION}"))?;
    assert_eq!(answer.status, 0, "{answer:?}");
    assert!(answer.output.contains("1234:11e8"), "{answer:?}");
    Ok(())
}

/// The schema by which Jenkins reads reports.
const JUNIT: &str = "
import sys, xmlschema
schema = xmlschema.XMLSchema(sys.argv[1])
for path in sys.argv[2:]:
    schema.validate(path)
    case = schema.to_dict(path)['testcase']
    print(case[0]['@classname'], case[0]['@name'], 'failure' in case[0])
";

#[test]
fn reports_follow_junits_schema() -> TestResult {
    let Some(tools) = tools() else { return Ok(()) };
    let scratch = Scratch::new("junit");
    let host = Board::new().boot()?;
    // What XML has other words for, which the kernel prints.
    let odd = r#"'strait.do=poweroff odd="<&>]]>"'"#;
    let (initrd, junit) = ("--initrd /k/guest.cpio", "--junit /tmp/report");
    let mut reports = Vec::new();
    for (index, (options, failed)) in [
        (format!("--kernel /k/model {initrd} --cmdline {odd} --until READY"), false),
        (format!("--kernel /k/model {initrd} --cmdline strait.do=panic"), true),
        ("--kernel /k/none".to_owned(), true),
        ("--kernel /k/model --memory 64M --timeout 1".to_owned(), true),
    ]
    .into_iter()
    .enumerate()
    {
        host.run(&format!("strait run {junit} {options} >/dev/null"))?;
        let path = scratch.0.join(format!("{index}.xml"));
        std::fs::write(&path, host.sh("cat /tmp/report && rm /tmp/report")?).unwrap();
        reports.push((path, failed));
    }
    let mut check = command(&tools, &scratch, "python3");
    check.args(["-c", JUNIT]).arg(tools.join("schemas/junit-10.xsd"));
    check.args(reports.iter().map(|(path, _)| path));
    let said = output(check);
    let expected = reports.iter().map(|(_, failed)| if *failed { "True" } else { "False" });
    let found: Vec<_> = said.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert_eq!(found, expected.collect::<Vec<_>>(), "{said}");
    Ok(())
}
