// The CPU quota of control groups, read from files laid out as Linux does; and the affinity mask.
#include <sched.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "check.hpp"
#include "cpu/available_cpus.hpp"

namespace {

namespace fs = std::filesystem;

// A folder with the given files, gone at the end.
class Files {
 public:
  Files() {
    std::string pattern = (fs::temp_directory_path() / "attile-cgroup-XXXXXX").string();
    root_ = mkdtemp(pattern.data());
  }
  ~Files() { fs::remove_all(root_); }
  Files& add(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
    return *this;
  }
  int limit() const { return attile::cgroup_cpu_limit((root_ / "cgroup").string(), (root_ / "fs").string()); }

 private:
  fs::path root_;
};

}  // namespace

TEST(no_groups) {
  CHECK_EQ(Files().limit(), 0);
  CHECK_EQ(Files().add("cgroup", "").limit(), 0);
  CHECK_EQ(Files().add("cgroup", "rubbish\n0:\n").limit(), 0);
}

TEST(version_2) {
  Files files;
  files.add("cgroup", "0::/a/b\n");
  CHECK_EQ(files.limit(), 0);
  CHECK_EQ(files.add("fs/a/b/cpu.max", "max 100000\n").limit(), 0);
  CHECK_EQ(files.add("fs/a/b/cpu.max", "400000 100000\n").limit(), 4);
  CHECK_EQ(files.add("fs/a/b/cpu.max", "250000 100000\n").limit(), 3);
  CHECK_EQ(files.add("fs/a/b/cpu.max", "1000 100000\n").limit(), 1);
}

TEST(version_2_parents_bind) {
  Files files;
  files.add("cgroup", "0::/a/b\n").add("fs/a/b/cpu.max", "800000 100000\n").add("fs/a/cpu.max", "200000 100000\n");
  CHECK_EQ(files.limit(), 2);
  // Inside a container with a namespace of its own the path is "/" and the limit lies at the mount.
  CHECK_EQ(Files().add("cgroup", "0::/\n").add("fs/cpu.max", "150000 100000\n").limit(), 2);
}

TEST(version_1) {
  Files files;
  files.add("cgroup", "12:cpuset:/x\n4:cpu,cpuacct:/x/y\n1:name=systemd:/x\n");
  CHECK_EQ(files.limit(), 0);
  files.add("fs/cpu,cpuacct/x/y/cpu.cfs_period_us", "100000\n").add("fs/cpu,cpuacct/x/y/cpu.cfs_quota_us", "-1\n");
  CHECK_EQ(files.limit(), 0);
  CHECK_EQ(files.add("fs/cpu,cpuacct/x/y/cpu.cfs_quota_us", "350000\n").limit(), 4);
  files.add("fs/cpu/x/cpu.cfs_period_us", "50000\n").add("fs/cpu/x/cpu.cfs_quota_us", "100000\n");
  CHECK_EQ(files.limit(), 2);
}

TEST(version_1_of_another_controller) {
  Files files;
  files.add("cgroup", "3:cpuset:/x\n").add("fs/cpuset/x/cpu.cfs_quota_us", "100000\n").add("fs/cpuset/x/cpu.cfs_period_us", "100000\n");
  CHECK_EQ(files.limit(), 0);
}

TEST(affinity_binds) {
  CHECK(attile::available_cpus() >= 1);
  // In a thread of its own, whose mask dies with it.
  std::thread([] {
    cpu_set_t old, one;
    CPU_ZERO(&one);
    if (sched_getaffinity(0, sizeof old, &old) != 0) return check::fail(__FILE__, __LINE__, "sched_getaffinity");
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &old)) CPU_SET(cpu, &one);
      if (CPU_COUNT(&one) == 1) break;
    }
    CHECK_EQ(sched_setaffinity(0, sizeof one, &one), 0);
    CHECK_EQ(attile::available_cpus(), 1);
  }).join();
}

TEST_MAIN()
