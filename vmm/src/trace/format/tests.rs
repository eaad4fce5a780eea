use serde_json::Value;

use super::super::record::{Access, Event, NO_CPU, Record};
use super::*;

const TABLE: &str = "\
000 CTRL ENABLE=0 MODE=6:4
010*2+8/16 FIFO
012/16 LEVEL
";

/// A few events, 1 s apart.
fn events() -> Vec<Record> {
    let access = |write, region, offset, data: &[u8]| {
        Event::Access(Access::new(write, region, offset, data))
    };
    let all = [
        (0, 0xffff_8000_1234_5678, access(true, 0, 0, &[0x31, 0, 0, 0])),
        (1, 0, access(false, 0, 0x10, &[1, 0, 2, 0])),
        (11, 4, access(false, 0, 0x19, &[7])),
        (0, 4, access(true, 1, 0x1000, &[0xff; 8])),
        (NO_CPU, 0, Event::Interrupt(1, 1)),
        (NO_CPU, 0, Event::Interrupt(0, 3)),
        (NO_CPU, 0, Event::Ended(1)),
        (NO_CPU, 0, Event::Reset),
    ];
    let record =
        |(at, (cpu, pc, event)): (u64, _)| Record { time: at * 1_000_000_000 + 5, cpu, event, pc };
    (0..).zip(all).map(record).collect()
}

fn names(device: &str, interrupts: &[Line], table: RegisterTable) -> Names {
    let (device, interrupts) = (device.to_owned(), interrupts.to_vec());
    let is_function = interrupts.iter().any(|line| !line.kind.is_empty());
    Names { device, is_function, interrupts, table, scmi: None }
}

/// What a trace of them is, of which one was lost and two left out.
fn written(format: TraceFormat) -> String {
    let table = RegisterTable::parse(TABLE);
    let line = |number, ends| Line { kind: "", number, ends };
    let mut format =
        Format::new(format, names("1.qcom,dma \"x\"", &[line(0, false), line(1, true)], table));
    let mut text = format.header();
    format.left_out(2, &mut text);
    events().iter().for_each(|record| format.record(record, &mut text));
    format.lost(1, &mut text);
    text
}

#[test]
fn lines_are_for_persons() {
    let expected = "\
# 2 events left out
    0.000000005 cpu0 ffff800012345678 write 0x000 0x00000031 CTRL ENABLE MODE=0x3
    1.000000005 cpu1 read  0x010 0x00020001 FIFO0 0x1; LEVEL 0x2
    2.000000005 cpu11 0000000000000004 read  0x019 0x07 FIFO1.1
    3.000000005 cpu0 0000000000000004 write 1:0x1000 0xffffffffffffffff
    4.000000005 -    interrupt 1
    5.000000005 -    interrupt 0, 3 times
    6.000000005 -    interrupt 1 ended
    7.000000005 -    the guest begins anew
# 1 events lost
";
    assert_eq!(written(TraceFormat::Text), expected);
}

#[test]
fn each_line_of_json_is_an_object() {
    let text = written(TraceFormat::Json);
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(lines.len(), 10);
    assert_eq!(lines[0], serde_json::json!({ "event": "left-out", "count": 2 }));
    let register = serde_json::json!(
        [{ "name": "CTRL", "value": "0x31", "fields": { "ENABLE": 1, "MODE": 3 } }]
    );
    assert_eq!(
        lines[1],
        serde_json::json!({
            "time": 0.000_000_005, "device": "1.qcom,dma \"x\"", "cpu": 0,
            "pc": "0xffff800012345678", "event": "write", "region": 0, "offset": 0, "width": 4,
            "value": "0x31", "registers": register
        })
    );
    assert_eq!(lines[2]["registers"][1]["name"], "LEVEL");
    assert_eq!(lines[5]["event"], "interrupt");
    assert_eq!((&lines[6]["index"], &lines[6]["count"]), (&0.into(), &3.into()));
    assert!(lines[6].get("cpu").is_none() && lines[6].get("pc").is_none());
    assert_eq!((&lines[7]["event"], &lines[8]["event"]), (&"ended".into(), &"reset".into()));
}

#[test]
fn numbers_that_javascript_has_not_are_texts() {
    let table = RegisterTable::parse("000/64 ADDRESS ALL=63:0 LOW=51:0 TOP=63:60\n");
    let names = names("x", &[], table);
    let mut text = String::new();
    let event = Event::Access(Access::new(true, 0, 0, &[0xff; 8]));
    Format::new(TraceFormat::Json, names).record(&Record { event, ..events()[0] }, &mut text);
    let object: Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!(
        { "ALL": "0xffffffffffffffff", "LOW": (1_u64 << 52) - 1, "TOP": 15 }
    );
    assert_eq!(object["registers"][0]["fields"], expected);
}

#[test]
fn a_value_change_dump_has_a_signal_for_each_register() {
    let expected = "\
$version strait $end
$timescale 1ns $end
$scope module 1_qcom_dma__x_ $end
$var wire 16 ! cpu $end
$var wire 64 \" pc $end
$var event 1 # read $end
$var event 1 $ write $end
$var event 1 % reset $end
$var wire 64 & offset $end
$var wire 64 ' value $end
$var wire 32 ( region $end
$var event 1 ) interrupt0 $end
$var wire 1 * interrupt1 $end
$var wire 32 + CTRL $end
$var wire 16 , FIFO0 $end
$var wire 16 - FIFO1 $end
$var wire 16 . LEVEL $end
$upscope $end
$enddefinitions $end
$comment 2 events left-out $end
#5
b0 !
b1111111111111111100000000000000000010010001101000101011001111000 \"
b110001 +
1$
#1000000005
b1 !
b0 \"
b1 ,
b10 .
1#
#2000000005
b1011 !
b100 \"
b11100000000 -
1#
#3000000005
b0 !
b100 \"
b1000000000000 &
b1111111111111111111111111111111111111111111111111111111111111111 '
b1 (
1$
#4000000005
1*
#5000000005
1)
#6000000005
0*
#7000000005
1%
0*
$comment 1 events lost $end
";
    assert_eq!(written(TraceFormat::Vcd), expected);
}

#[test]
fn a_function_has_a_configuration_space_and_messages() {
    let line = |kind, number, ends| Line { kind, number, ends };
    let lines = [line("intx", 0, true), line("msi", 0, false), line("msix", 3, false)];
    let events = [
        Event::Access(Access::new(true, CONFIG_REGION, 4, &[6, 4])),
        Event::Interrupt(2, 1),
        Event::Interrupt(0, 1),
        Event::Ended(0),
    ];
    let written = |format| {
        let table = RegisterTable::default().with(CONFIG_REGION, "004/16 COMMAND MEMORY=1 OFF=10");
        let mut format = Format::new(format, names("0000:00:05.0", &lines, table));
        let mut text = format.header();
        for (time, event) in (0..).zip(events) {
            format.record(&Record { time, cpu: NO_CPU, event, pc: 0 }, &mut text);
        }
        text
    };
    let expected = "    0.000000000 -    write config:0x004 0x0406 COMMAND MEMORY OFF
    0.000000001 -    interrupt msix 3
    0.000000002 -    interrupt intx
    0.000000003 -    interrupt intx ended
";
    assert_eq!(written(TraceFormat::Text), expected);
    let json: Vec<Value> = written(TraceFormat::Json)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(json[0]["region"], "config");
    assert_eq!((&json[1]["kind"], &json[1]["index"]), (&"msix".into(), &3.into()));
    assert_eq!((&json[3]["event"], &json[3]["kind"]), (&"ended".into(), &"intx".into()));
    let vcd = written(TraceFormat::Vcd);
    assert!(
        vcd.contains("wire 1 ) intx0 $end\n$var event 1 * msi0 $end\n$var event 1 + msix3 $end")
    );
    assert!(vcd.ends_with("#1\n1+\n#2\n1)\n#3\n0)\n"), "{vcd}");
}
