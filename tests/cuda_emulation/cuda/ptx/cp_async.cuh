// In place of src/cuda/ptx/cp_async.cuh.
#pragma once

namespace attile::cuda::ptx {

inline void cp_async_16(uint32_t to, const void* from, int bytes) { emulation::copy_later(to, from, 16, bytes); }
inline void cp_async_4(uint32_t to, const void* from, int bytes) { emulation::copy_later(to, from, 4, bytes); }
inline void cp_async_commit() { emulation::commit_copies(); }
template <int kGroups>
void cp_async_wait_groups() {
  emulation::wait_for_groups(kGroups);
}
inline void cp_async_wait() { emulation::wait_for_copies(); }

}  // namespace attile::cuda::ptx
