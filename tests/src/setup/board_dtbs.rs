//! Compiled device trees of real boards, from the kernel's own sources: what assigned devices'
//! nodes are tried on.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::error::{Error, FileError};
use super::process;
use super::progress::Step;

/// Below `arch/arm64/boot/dts`: many vendors' boards, and of large vendors several.
pub(super) const BOARDS: [&str; 47] = [
    "allwinner/sun50i-a64-pine64",
    "allwinner/sun50i-h6-pine-h64",
    "altera/socfpga_stratix10_socdk",
    "amd/amd-overdrive-rev-b1",
    "amlogic/meson-g12b-odroid-n2",
    "amlogic/meson-gxl-s905x-libretech-cc",
    "apm/apm-mustang",
    "apple/t8103-j274",
    "arm/fvp-base-revc",
    "arm/juno-r2",
    "broadcom/bcm2711-rpi-4-b",
    "exynos/exynos5433-tm2",
    "exynos/exynosautov9-sadk",
    "freescale/fsl-ls1028a-rdb",
    "freescale/fsl-ls1043a-rdb",
    "freescale/fsl-lx2160a-rdb",
    "freescale/imx8mp-evk",
    "freescale/imx8qm-mek",
    "freescale/imx93-11x11-evk",
    "hisilicon/hi3660-hikey960",
    "hisilicon/hip07-d05",
    "intel/socfpga_agilex_socdk",
    "marvell/armada-3720-espressobin",
    "marvell/armada-8040-mcbin",
    "mediatek/mt7986a-rfb",
    "mediatek/mt8173-evb",
    "mediatek/mt8195-demo",
    "nvidia/tegra194-p2972-0000",
    "nvidia/tegra210-p2371-2180",
    "nvidia/tegra234-p3737-0000+p3701-0000",
    "qcom/apq8016-sbc",
    "qcom/sa8775p-ride",
    "qcom/sdm845-mtp",
    "qcom/sm8550-mtp",
    "qcom/x1e80100-crd",
    "renesas/r8a77951-salvator-xs",
    "renesas/r9a07g044l2-smarc",
    "rockchip/rk3328-rock64",
    "rockchip/rk3399-rockpro64",
    "rockchip/rk3568-evb1-v10",
    "rockchip/rk3588-rock-5b",
    "socionext/uniphier-ld20-ref",
    "st/stm32mp257f-ev1",
    "ti/k3-am625-sk",
    "ti/k3-am642-evm",
    "ti/k3-j721e-sk",
    "xilinx/zynqmp-zcu102-rev1.0",
];

/// The directory of an entry in which they are, as `VENDOR-BOARD.dtb`.
pub(super) const DIRECTORY: &str = "boards";

/// Has `make` compile them in the kernel's build directory `build`, and puts them into `out`.
pub(super) fn compile(
    step: &Step,
    make: &mut Command,
    build: &Path,
    out: &Path,
) -> Result<(), Error> {
    step.phase("compiling boards' device trees");
    process::run(step, make.args(BOARDS.map(|board| format!("{board}.dtb"))), |_| {})?;
    let directory = out.join(DIRECTORY);
    fs::create_dir(&directory).at("create", &directory)?;
    for board in BOARDS {
        let from = build.join(format!("arch/arm64/boot/dts/{board}.dtb"));
        let to = directory.join(format!("{}.dtb", board.replace('/', "-")));
        fs::copy(&from, to).at("copy", from)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::BOARDS;

    #[test]
    fn every_board_is_there_once_under_a_name_of_its_own() {
        let names: BTreeSet<String> = BOARDS.iter().map(|board| board.replace('/', "-")).collect();
        assert_eq!(names.len(), BOARDS.len());
        assert!(BOARDS.is_sorted());
    }
}
