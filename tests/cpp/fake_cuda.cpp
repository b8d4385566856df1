// A libattile_cuda.so without CUDA, whose GPUs are the host's memory: tests/test_fake_cuda.py puts it beside libattile to see what a call
// on CUDA arrays hands over. The environment says what shall go wrong:
//
//   FAKE_CUDA_COUNT      number of GPUs; 0: there is no driver
//   FAKE_CUDA_CAPTURING  the stream is being captured
//   FAKE_CUDA_FAIL       the launch fails
//
// Its kernel takes float32 with lengths, pages and segment ids, all of which must lie on the device, one thread, two passes.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "core/check.hpp"
#include "cuda/entry.hpp"

namespace attile {
namespace {

int current_device = 0;
const CudaHost* host = nullptr;

bool is_set(const char* name) { return std::getenv(name) != nullptr; }

int count_devices(std::string& why) {
  const char* count = std::getenv("FAKE_CUDA_COUNT");
  if (count && std::atoi(count) == 0) why = "no driver was found; a driver is needed";
  return count ? std::atoi(count) : 2;
}

void describe_device(int id, CudaDevice& device) {
  device = {};
  std::snprintf(device.name, sizeof device.name, "Fake %d", id);
  device.major = 9;
}

void with_device(int device, void (*body)(void*), void* context) {
  struct Restore {
    int before = current_device;
    ~Restore() { current_device = before; }
  } restore;
  current_device = device;
  body(context);
}

bool is_capturing(void*) { return is_set("FAKE_CUDA_CAPTURING"); }
void copy_to_device(void* to, const void* from, size_t bytes, void*) { std::memcpy(to, from, bytes); }
void synchronize(void*) {}

float at(const View& v, int64_t a, int64_t b, int64_t c, int64_t d) {
  float x;
  std::memcpy(&x, v.at(a, b, c, d), sizeof x);
  return x;
}

// IndexView knows how to read one entry.
int64_t index_at(const View& v, int64_t row, int64_t i) {
  return IndexView{v.at(0, 0, row), v.dtype, v.shape[3], v.stride[3]}[i];
}

std::string why_not(const AttentionProblem& p, const Config&) { return p.dtype == DType::f32 ? "" : "takes float32 only"; }

Plan plan(const AttentionProblem& p, const Config&, int) {
  Plan plan;
  plan.workspace_bytes = 100;
  plan.block_k = p.k_seqs.longest;  // for explain(): what the host knows
  return plan;
}

void run(const AttentionProblem& p, const Plan&, void* workspace, const Execution& execution) {
  if (is_set("FAKE_CUDA_FAIL")) throw Error(ATTILE_RUNTIME_ERROR, "launching the fake kernel: out of fakes");
  std::memset(workspace, 0xFF, 100);
  std::printf("device %d of %d, stream %p\n", current_device, host->device_count(), execution.stream);
  std::fflush(stdout);
  for (const IndexView* index : {&p.q_seqs.cu, &p.k_seqs.cu, &p.k_seqs.lens})
    if (*index && !index->on_device) throw Error(ATTILE_RUNTIME_ERROR, "an index array is not on the device");
  for (int64_t b = 0; b < p.batch; ++b) {
    for (int64_t h = 0; h < p.heads_q; ++h) {
      for (int64_t i = 0; i < p.q_seqs.length(b); ++i) {
        const int64_t q_batch = p.q_seqs.batch_index(b), q_row = p.q_seqs.first_row(b) + i;
        std::vector<float> out(static_cast<size_t>(p.head_dim_v));
        float sum = 0;
        for (int64_t j = 0; j < p.k_seqs.length(b); ++j) {
          int64_t k_batch = p.k_seqs.batch_index(b), k_row = p.k_seqs.first_row(b) + j;
          if (!p.mask(b).seen(i, j)) continue;
          if (p.q_ids && index_at(p.q_ids, q_batch, q_row) != index_at(p.k_ids, k_batch, k_row)) continue;
          if (p.page_table) k_batch = index_at(p.page_table, b, j / p.page_size()), k_row = j % p.page_size();
          float s = 0;
          for (int64_t d = 0; d < p.head_dim; ++d) s += at(p.q, q_batch, q_row, h, d) * at(p.k, k_batch, k_row, h / p.group, d);
          const float weight = std::exp(s * static_cast<float>(p.softmax_scale));
          sum += weight;
          for (int64_t d = 0; d < p.head_dim_v; ++d) out[static_cast<size_t>(d)] += weight * at(p.v, k_batch, k_row, h / p.group, d);
        }
        for (float& x : out) x = sum > 0 ? x / sum : 0;
        std::memcpy(p.out.at(q_batch, q_row, h), out.data(), out.size() * sizeof(float));
      }
    }
  }
}

void merge(const View&, const View&, const View&, const View&, const View&, const View&, void*) {
  throw Error(ATTILE_RUNTIME_ERROR, "launching the fake merge: out of fakes");
}

bool available() { return host->device(0).major >= 9; }

constexpr Kernel kKernels[] = {
    {"forward_fake", "fake", kVarlenQ | kVarlenK | kKvLens | kPages | kSegmentIds | kCausal, available, why_not, plan, run}};

}  // namespace
}  // namespace attile

extern "C" __attribute__((visibility("default"))) const attile::CudaLibrary* attile_cuda_entry(uint64_t interface,
                                                                                               const attile::CudaHost* from) {
  using namespace attile;
  if (interface != kCudaInterface) return nullptr;
  host = from;
  static const CudaLibrary library{1000,         "fake",         count_devices, describe_device, with_device,
                                   is_capturing, copy_to_device, synchronize,   kKernels,        merge};
  return &library;
}
