#include "cpu/available_cpus.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>

#ifdef __linux__
#include <sched.h>
#endif

namespace attile {
namespace {

// The number of set bits of the affinity mask; the mask grows until the kernel's fits. 0: cannot be known.
int affinity_cpus() {
#ifdef __linux__
  for (int cpus = 1024; cpus <= 1 << 20; cpus *= 2) {
    cpu_set_t* mask = CPU_ALLOC(cpus);
    if (mask == nullptr) return 0;
    const size_t bytes = CPU_ALLOC_SIZE(cpus);
    const int count = sched_getaffinity(0, bytes, mask) == 0 ? CPU_COUNT_S(bytes, mask) : 0;
    CPU_FREE(mask);
    if (count > 0) return count;
  }
#endif
  return 0;
}

// quota / period of one group in CPUs, infinity when it has none or its files are not there.
double group_limit(const std::string& folder, bool version2) {
  double quota = -1, period = 0;
  if (version2) {
    std::string text;
    std::ifstream file(folder + "/cpu.max");
    if (file >> text >> period && text != "max") std::istringstream(text) >> quota;
  } else {
    std::ifstream(folder + "/cpu.cfs_quota_us") >> quota;
    std::ifstream(folder + "/cpu.cfs_period_us") >> period;
  }
  return quota > 0 && period > 0 ? quota / period : INFINITY;
}

// A group is bound by its parents too.
double path_limit(const std::string& mount, std::string path, bool version2) {
  double limit = group_limit(mount, version2);
  while (path.size() > 1) {
    limit = std::min(limit, group_limit(mount + path, version2));
    path.resize(path.rfind('/'));
  }
  return limit;
}

bool names_cpu(const std::string& controllers) { return ("," + controllers + ",").find(",cpu,") != std::string::npos; }

}  // namespace

int cgroup_cpu_limit(const std::string& proc_cgroup, const std::string& mount) {
  // Lines are id:controllers:path. Version 2 is the line 0::path; of version 1 the one whose controllers hold "cpu".
  double limit = INFINITY;
  std::ifstream file(proc_cgroup);
  for (std::string line; std::getline(file, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), path = line.substr(second + 1);
    if (path.empty() || path[0] != '/') continue;
    if (controllers.empty()) {
      limit = std::min(limit, path_limit(mount, path, true));
    } else if (names_cpu(controllers)) {
      limit = std::min(limit, path_limit(mount + "/" + controllers, path, false));
      limit = std::min(limit, path_limit(mount + "/cpu", path, false));
    }
  }
  return std::isinf(limit) ? 0 : std::max(1, static_cast<int>(std::ceil(std::min(limit, 1e6))));
}

int available_cpus() {
  int cpus = affinity_cpus();
  if (cpus == 0) cpus = static_cast<int>(std::thread::hardware_concurrency());
#ifdef __linux__
  const int limit = cgroup_cpu_limit("/proc/self/cgroup", "/sys/fs/cgroup");
  if (limit > 0) cpus = std::min(cpus, limit);
#endif
  return std::max(1, cpus);
}

}  // namespace attile
