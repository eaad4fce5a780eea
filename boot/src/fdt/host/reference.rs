//! References from node to node: lists of phandles with arguments, such as `clocks`.

use super::HostTree;
use super::error::HostError;
use super::node::HostNode;

/// One entry of a list of references.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The node it refers to, without its children.
    pub provider: HostNode,
    /// The cells that follow the phandle.
    pub arguments: Vec<u32>,
}

impl HostTree {
    /// What the property `list` of `node` refers to: each entry a phandle followed by as many
    /// cells as its provider's property `count` says (`clocks` and `#clock-cells`), or by none
    /// where `count` is `None` (`memory-region`). An entry that is 0 is empty. No such property is
    /// an empty list.
    ///
    /// # Errors
    ///
    /// A phandle that no node has, a provider without `count`, a list that ends within an entry,
    /// or a malformed file.
    pub fn references(
        &self,
        node: &HostNode,
        list: &str,
        count: Option<&str>,
    ) -> Result<Vec<Option<Reference>>, HostError> {
        let cells = node.cells(list)?.unwrap_or_default();
        let mut rest = cells.as_slice();
        let mut references = Vec::new();
        while let Some((phandle, after)) = rest.split_first() {
            rest = after;
            if *phandle == 0 {
                references.push(None);
                continue;
            }
            let provider = self
                .by_phandle(*phandle)?
                .ok_or_else(|| HostError::NoPhandle { path: node.file(list), phandle: *phandle })?;
            let wanted = match count {
                Some(count) => provider.u32(count)?.ok_or_else(|| HostError::NoCells {
                    path: provider.file(count),
                    from: node.file(list),
                })?,
                None => 0,
            };
            let cut_off = || HostError::CutOff { path: node.file(list), wanted };
            let length = usize::try_from(wanted).map_err(|_| cut_off())?;
            let (arguments, after) = rest.split_at_checked(length).ok_or_else(cut_off)?;
            rest = after;
            references.push(Some(Reference { provider, arguments: arguments.to_vec() }));
        }
        Ok(references)
    }
}
