//! A device's configuration as strait has it, so that no vCPU waits for the backend that told it.

/// The size of an input device's configuration (virtio 1.2, 5.8.4).
pub(super) const INPUT_SIZE: usize = 136;
/// Where it has its `size` and what it is the size of.
const SIZE_AT: usize = 2;
const DATA_AT: usize = 8;

/// `VIRTIO_INPUT_CFG_…` (virtio 1.2, 5.8.4).
const ID_NAME: u8 = 0x01;
const ID_SERIAL: u8 = 0x02;
const ID_DEVIDS: u8 = 0x03;
const PROP_BITS: u8 = 0x10;
const EV_BITS: u8 = 0x11;
const ABS_INFO: u8 = 0x12;

/// Linux' `EV_ABS` and the number of the last type of event (`EV_MAX`), which virtio takes over.
const EV_ABS: u8 = 0x03;
const EV_MAX: u8 = 0x1f;

/// The configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Config {
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
    /// Where the driver selects what it is to be: what there is, by the first two bytes.
    selections: Option<Vec<([u8; 2], Vec<u8>)>>,
}

impl From<Vec<u8>> for Config {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, selections: None }
    }
}

impl Config {
    /// That of an input device: all that a driver may select is asked of the backend, once, with
    /// `select`, which tells the configuration that two bytes select.
    ///
    /// # Errors
    ///
    /// Those of `select`.
    pub(super) fn of_input<E>(
        mut select: impl FnMut([u8; 2]) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let fixed = [ID_NAME, ID_SERIAL, ID_DEVIDS, PROP_BITS].map(|what| [what, 0]);
        let events = (1..=EV_MAX).map(|kind| [EV_BITS, kind]);
        let mut told = Vec::new();
        for selection in fixed.into_iter().chain(events) {
            told.push((selection, data(&select(selection)?)));
        }
        let axes = told.iter().find(|(selection, _)| *selection == [EV_BITS, EV_ABS]);
        let axes: Vec<u8> = axes.map(|(_, bits)| numbers(bits).collect()).unwrap_or_default();
        for axis in axes {
            let selection = [ABS_INFO, axis];
            told.push((selection, data(&select(selection)?)));
        }
        told.retain(|(_, data)| !data.is_empty());
        Ok(Self { bytes: vec![0; INPUT_SIZE], selections: Some(told) })
    }

    /// Whether a driver that has selected nothing yet reads the same in both.
    fn is_as(&self, other: &Self) -> bool {
        self.selections == other.selections
            && (self.selections.is_some() || self.bytes == other.bytes)
    }

    /// Takes over what was told anew; whether that is something else. What the driver has selected stays
    /// selected if it isn't.
    pub(super) fn update(&mut self, told: Self) -> bool {
        let is_other = !self.is_as(&told);
        if is_other {
            *self = told;
        }
        is_other
    }

    /// Fills `data` with the bytes from `offset` on; there are zeros behind the last.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.bytes.get(offset..));
        let known = rest.unwrap_or_default().iter().copied();
        data.iter_mut().zip(known.chain(std::iter::repeat(0))).for_each(|(to, from)| *to = from);
    }

    /// The driver writes `data` at `offset`; whether the backend is to be told.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(data.len());
        let Some(place) = self.bytes.get_mut(start..end) else { return false };
        let Some(selections) = &self.selections else {
            // Until the backend has said what it makes of it.
            place.copy_from_slice(data);
            return true;
        };
        if end <= SIZE_AT {
            place.copy_from_slice(data);
            let selected = self.bytes.first_chunk::<SIZE_AT>();
            let found = selections.iter().find(|(selection, _)| Some(selection) == selected);
            let found = found.map(|(_, data)| data.as_slice()).unwrap_or_default();
            let size = u8::try_from(found.len()).unwrap_or_default();
            let header = [size, 0, 0, 0, 0, 0];
            let told = header.iter().chain(found).copied().chain(std::iter::repeat(0));
            self.bytes.iter_mut().skip(SIZE_AT).zip(told).for_each(|(to, from)| *to = from);
        }
        false
    }
}

/// What a configuration has of what is selected.
fn data(config: &[u8]) -> Vec<u8> {
    let size = config.get(SIZE_AT).copied().unwrap_or_default();
    let all = config.get(DATA_AT..).unwrap_or_default();
    all.iter().take(size.into()).copied().collect()
}

/// The numbers of the bits that are set.
fn numbers(bits: &[u8]) -> impl Iterator<Item = u8> {
    (0..=u8::MAX).filter(|number| {
        let byte = bits.get(usize::from(number / 8)).copied().unwrap_or_default();
        byte & 1 << (number % 8) != 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: &Config) -> (u8, Vec<u8>) {
        let (mut size, mut data) = ([0], [0xff; 128]);
        config.read(2, &mut size);
        config.read(8, &mut data);
        (size[0], data[..=usize::from(size[0])].to_vec())
    }

    #[test]
    fn what_a_driver_selects_is_there_at_once() {
        let mut asked = Vec::new();
        let mut input = Config::of_input(|selection| {
            asked.push(selection);
            let told: &[u8] = match selection {
                [ID_NAME, 0] => b"a name",
                // Axes 0 and 9.
                [EV_BITS, EV_ABS] => &[1, 2],
                [ABS_INFO, 9] => &[7; 20],
                _ => &[],
            };
            let mut config =
                [selection.as_slice(), &[u8::try_from(told.len()).unwrap()], &[0; 5], told]
                    .concat();
            config.resize(INPUT_SIZE, 0xee);
            Ok::<_, ()>(config)
        })
        .unwrap();
        assert_eq!(asked.len(), 4 + 31 + 2);
        assert_eq!(read(&input), (0, vec![0]));
        // Byte by byte, as Linux does, and both at once.
        assert!(!input.write(0, &[ID_NAME]) && !input.write(1, &[0]));
        assert_eq!(read(&input), (6, b"a name\0".to_vec()));
        input.write(0, &[EV_BITS, EV_ABS]);
        assert_eq!(read(&input), (2, vec![1, 2, 0]));
        input.write(0, &[ABS_INFO, 9]);
        assert_eq!(read(&input), (20, [[7; 20].as_slice(), &[0]].concat()));
        input.write(0, &[ABS_INFO, 8]);
        assert_eq!(read(&input), (0, vec![0]));
        // Nothing else is written.
        for (offset, data) in
            [(1, &[1, 1][..]), (2, &[1]), (135, &[1]), (136, &[1]), (u64::MAX, &[1])]
        {
            assert!(!input.write(offset, data));
        }
        assert_eq!(read(&input), (0, vec![0]));
    }

    #[test]
    fn what_is_told_again_changes_nothing() {
        let told = |name: &[u8]| {
            let size = u8::try_from(name.len()).unwrap();
            let config = [&[0, 0, size, 0, 0, 0, 0, 0], name].concat();
            Config::of_input(|_| Ok::<_, ()>(config.clone())).unwrap()
        };
        let mut input = told(b"a name");
        input.write(0, &[ID_NAME, 0]);
        assert!(!input.update(told(b"a name")));
        assert_eq!(read(&input).0, 6);
        assert!(input.update(told(b"another")));
        assert_eq!(read(&input).0, 0);
        let mut plain = Config::from(vec![1, 2]);
        assert!(!plain.update(vec![1, 2].into()) && plain.update(vec![1, 3].into()));
        assert_eq!(plain.bytes, [1, 3]);
    }

    #[test]
    fn a_size_that_is_too_large_is_cut() {
        let config = vec![0xff; INPUT_SIZE];
        assert_eq!(data(&config).len(), 128);
        assert!(data(&config[..5]).is_empty() && data(&[]).is_empty());
        assert_eq!(numbers(&[0xff; 128]).count(), 256);
    }
}
