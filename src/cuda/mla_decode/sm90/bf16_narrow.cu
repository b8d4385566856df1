#include "cuda/mla_decode/sm90/few_rows_kernel.cuh"
#include "cuda/mla_decode/sm90/launch.cuh"

namespace attile::cuda::mla_sm90 {
namespace {

using Few = few_rows::Shape;

void launch_few_rows(const Params& p, const Arrays& a, void* stream) {
  static_assert(sizeof(few_rows::Storage) <= Few::kShared);
  const auto boxes = [](const Matrix& m, int rows) { return box_map(m, rows, false, 128); };
  const Maps maps{byte_map(a.ckv, Few::kBoxRows, Few::kBoxColumns), boxes(a.kpe, Few::kBoxRows), boxes(a.q_nope, Few::kM),
                  boxes(a.q_pe, Few::kM)};
  start<mla_decode_few_rows, Few::kThreads, few_rows::Storage>(p, maps, stream);
}

}  // namespace

std::span<const Instance> bf16_narrow() {
  static constexpr Instance instances[] = {{Few::kLatent, Few::kRope, false, false, true, Few::kM, Few::kN, launch_few_rows},
                                           instance_of<Traits<Bf16, 8, 1, 2, Rope::shared, Keys::narrow>>()};
  return instances;
}

}  // namespace attile::cuda::mla_sm90
