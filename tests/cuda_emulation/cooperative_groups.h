// The barrier of a cooperative grid.
#pragma once

namespace cooperative_groups {

struct grid_group {
  using arrival_token = unsigned;
  arrival_token barrier_arrive() const {
    __syncthreads();
    if (threadIdx.x != 0) return 0;
    emulation::made_progress();
    const unsigned all = gridDim.x * gridDim.y;
    return (emulation::grid_arrivals++ / all + 1) * all;
  }
  void barrier_wait(arrival_token&& until) const {
    if (threadIdx.x == 0)
      while (emulation::grid_arrivals < until) emulation::wait_for_others();
    __syncthreads();
  }
};
inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
