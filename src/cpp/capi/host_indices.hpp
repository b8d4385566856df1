// Index arrays that lie on the host beside CUDA data (cu_seqlens, segment ids, lengths, page tables). They are packed into the
// call's workspace, after what the kernel itself needs, by copies queued before the kernel; the problem's views are then pointed
// there. The host's memory is free again when run() returns. A graph that is being captured would read that memory at replay, so
// during capture they are refused.
#pragma once

#include <vector>

#include "capi/cuda_library.hpp"
#include "core/view.hpp"

namespace attile {

class HostIndices {
 public:
  // Takes the array if it is given and lies on the host. `view` is the problem's and stays where it is.
  void add(const char* name, const attile_tensor* array, IndexView& view);
  void add(const char* name, const attile_tensor* array, View& view);

  bool empty() const { return entries_.empty(); }
  size_t bytes() const { return bytes_; }
  void copy(const CudaLibrary& cuda, const char* function, const Execution& execution, char* workspace);

 private:
  struct Entry {
    const char* name;
    attile_tensor array;
    IndexView* index;  // or
    View* view;
    size_t offset;
  };
  void add(const char* name, const attile_tensor* array, IndexView* index, View* view);

  std::vector<Entry> entries_;
  size_t bytes_ = 0;
};

}  // namespace attile
