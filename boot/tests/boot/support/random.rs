//! Randomness that is the same in every run.

/// Marsaglia's xorshift64 ("Xorshift RNGs"), with its state.
pub struct Xorshift(pub u64);

impl Xorshift {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap() % bound
    }

    pub fn word(&mut self) -> u32 {
        u32::try_from(self.below(1 << 16) << 16 | self.below(1 << 16)).unwrap()
    }

    pub fn one_of<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    /// A file with some bytes changed, and sometimes its end missing.
    pub fn mangled(&mut self, file: &[u8]) -> Vec<u8> {
        let mut mangled = file.to_vec();
        for _ in 0..1 + self.below(4) {
            let at = if self.below(2) == 0 { self.below(256) } else { self.below(mangled.len()) };
            mangled[at] = self.below(256).to_le_bytes()[0];
        }
        let length = if self.below(4) == 0 { self.below(mangled.len()) } else { mangled.len() };
        mangled.truncate(length);
        mangled
    }
}
