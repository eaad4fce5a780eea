# A guest as a Nomad job: nomad job run strait.nomad.hcl
#
# The raw_exec driver runs strait as it is on the client, which must have raw_exec enabled and the device bound
# (`strait device bind 2c0c0000.dma`). Nomad's agent is root: strait gives that up by itself before the guest
# runs.
job "strait" {
  datacenters = ["dc1"]
  type        = "batch"

  constraint {
    attribute = "${attr.cpu.arch}"
    value     = "arm64"
  }

  group "guest" {
    # How the guest ended is the exit status: none is tried again by itself.
    reschedule {
      attempts  = 0
      unlimited = false
    }

    restart {
      attempts = 0
      mode     = "fail"
    }

    task "guest" {
      driver = "raw_exec"

      config {
        command = "/usr/bin/strait"
        args = [
          "run",
          "--kernel", "/srv/guest/Image",
          "--initrd", "/srv/guest/rootfs.cpio.gz",
          "--memory", "512M",
          "--vfio-platform", "2c0c0000.dma",
          "--grace", "60",
          "--junit", "${NOMAD_TASK_DIR}/report.xml",
        ]
      }

      # The guest's power button first, and the kill after --grace.
      kill_signal  = "SIGTERM"
      kill_timeout = "90s"

      resources {
        cpu    = 1000
        memory = 640
      }
    }
  }
}
