//! `/proc/interrupts` (Documentation/filesystems/proc.rst).

/// How often each interrupt line was handled, summed over the CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Interrupts {
    lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    /// What follows the counts: the chip, its number for the line, the trigger and the actions.
    description: String,
    count: u64,
}

impl Interrupts {
    /// Reads the text of the file, before which a VMM may have said something on the same console.
    pub fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let is_header = |line: &str| line.trim_start().starts_with("CPU");
        let header = lines.find(|line| is_header(line));
        let cpus = header.map_or(0, |header| header.split_whitespace().count());
        Self { lines: lines.filter_map(|line| Line::parse(line, cpus)).collect() }
    }

    /// The counts of the lines whose description contains `name`, in the file's order.
    pub fn of(&self, name: &str) -> Vec<u64> {
        self.lines.iter().filter(|l| l.description.contains(name)).map(|l| l.count).collect()
    }

    /// Those counts in sum.
    pub fn sum(&self, name: &str) -> u64 {
        self.of(name).iter().sum()
    }

    /// How often each line whose description contains `name` was handled since `before`.
    pub fn since(&self, before: &Self, name: &str) -> Vec<u64> {
        let earlier = |description: &str| {
            before.lines.iter().find(|l| l.description == description).map_or(0, |l| l.count)
        };
        self.lines
            .iter()
            .filter(|line| line.description.contains(name))
            .map(|line| line.count.saturating_sub(earlier(&line.description)))
            .collect()
    }
}

impl Line {
    fn parse(line: &str, cpus: usize) -> Option<Self> {
        let (_number, rest) = line.split_once(':')?;
        let mut words = rest.split_whitespace();
        let mut count = 0;
        for _ in 0..cpus {
            count += words.next()?.parse::<u64>().ok()?;
        }
        Some(Self { description: words.collect::<Vec<_>>().join(" "), count })
    }
}

#[cfg(test)]
mod tests {
    use super::Interrupts;

    const BEFORE: &str = "\
           CPU0       CPU1       
 11:       2404       2296     GICv3  27 Level     arch_timer
 44:         10          0     GICv3 208 Level     2c0a0000.dma
 45:          0          0     GICv3 209 Level     2c0a0000.dma
IPI0:        11         23       Rescheduling interrupts
Err:          0
";
    const AFTER: &str = "\
           CPU0       CPU1       
 11:       3404       3296     GICv3  27 Level     arch_timer
 44:         50         10     GICv3 208 Level     2c0a0000.dma
 45:          7          0     GICv3 209 Level     2c0a0000.dma
IPI0:        11         23       Rescheduling interrupts
Err:          0
";

    #[test]
    fn cpus_are_summed_and_lines_kept_apart() {
        let interrupts = Interrupts::parse(AFTER);
        assert_eq!(interrupts.of("2c0a0000.dma"), [60, 7]);
        assert_eq!(interrupts.sum("arch_timer"), 6700);
        assert_eq!(interrupts.of("2c0b0000.dma"), [0; 0]);
    }

    #[test]
    fn text_before_the_table_is_skipped() {
        let text = format!("strait: warn: 1.dma: interrupt 3 is stuck\n{AFTER}");
        assert_eq!(Interrupts::parse(&text), Interrupts::parse(AFTER));
    }

    #[test]
    fn differences_are_per_line() {
        let (before, after) = (Interrupts::parse(BEFORE), Interrupts::parse(AFTER));
        assert_eq!(after.since(&before, "2c0a0000.dma"), [50, 7]);
        assert_eq!(after.since(&Interrupts::default(), "2c0a0000.dma"), [60, 7]);
    }

    #[test]
    fn text_that_is_no_table_has_no_lines() {
        for text in ["", "CPU0\n", "CPU0 CPU1\n 3: 1\n", "CPU0\nx: y z\n"] {
            assert_eq!(Interrupts::parse(text).of(""), [0; 0], "{text:?}");
        }
    }
}
