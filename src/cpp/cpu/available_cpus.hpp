// How many CPUs this process may use: the smaller of its affinity mask and the CPU quota of its control groups (a container
// with "2 CPUs" on a machine of 64 has a mask of 64 and a quota of 2).
#pragma once

#include <string>

namespace attile {

// min(affinity, ceil(quota)), at least 1. Reads files: callers keep the answer.
int available_cpus();

// The quota alone, in CPUs, rounded up; 0 when there is none. `proc_cgroup` is /proc/self/cgroup and `mount` /sys/fs/cgroup;
// parameters for the tests' sake. Version 2: cpu.max of the group and of its parents. Version 1: cpu.cfs_quota_us likewise.
int cgroup_cpu_limit(const std::string& proc_cgroup, const std::string& mount);

}  // namespace attile
