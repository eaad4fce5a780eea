//! Programs that documents tell of do what they say.

use std::fs;
use std::process::Command;

use tests::setup::workspace;

/// A peripheral as vendors describe theirs: numbers of each form that CMSIS-SVD has, several of a kind, a cluster.
const SVD: &str = r#"<device><size>32</size><peripherals><peripheral><name>P</name><registers>
<register><name>A</name><addressOffset>0x00</addressOffset><fields>
<field><name>X</name><bitOffset>08</bitOffset><bitWidth>02</bitWidth></field>
<field><name>Y</name><bitRange>[15:12]</bitRange></field></fields></register>
<register><dim>2</dim><dimIncrement>4</dimIncrement><name>B%s</name><addressOffset>#10000</addressOffset></register>
<cluster><dim>2</dim><dimIncrement>0x40</dimIncrement><name>C[%s]</name><addressOffset>0x100</addressOffset>
<register><name>D</name><size>16</size><addressOffset>+4</addressOffset></register></cluster>
</registers></peripheral></peripherals></device>"#;

#[test]
fn a_table_of_registers_is_made_of_a_vendor_s_description() {
    let file = std::env::temp_dir().join(format!("strait-svd-{}", std::process::id()));
    fs::write(&file, SVD).unwrap();
    let program = workspace::root().join("resources/examples/svd2table.py");
    let made = Command::new("python3").arg(program).args([file.as_os_str(), "P".as_ref()]).output();
    fs::remove_file(file).unwrap();
    let made = made.expect("python3 runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let expected = "\
[A]
offset = 0x0
fields = { X = \"9:8\", Y = \"15:12\" }

[B]
offset = 0x10
count = 2
stride = 0x4

[C0_D]
offset = 0x104
bits = 16

[C1_D]
offset = 0x144
bits = 16

";
    assert_eq!(String::from_utf8_lossy(&made.stdout), expected);
}
