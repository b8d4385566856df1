// Tensor maps (what TMA needs to know of an array), made on the host.
#pragma once

#include <cuda.h>

#include <string>

#include "core/problem.hpp"

namespace attile::cuda::sm90 {

// "" where TMA can read the array, else what of it is in the way. Dimensions of one element do not count.
std::string tma_objection(const char* name, const View& v);

// The first of every n heads.
View every_nth_head(View v, int n);

// {dims, rows, heads, batch} in boxes of 128 bytes of dims and box_rows rows, swizzled. What lies outside is read as zeros and not written.
CUtensorMap rows_map(const View& v, int box_rows, CUtensorMapL2promotion promotion = CU_TENSOR_MAP_L2_PROMOTION_L2_256B);
// {dims, heads, rows, sets of heads, batch} in boxes of all `heads`: rows.cuh.
CUtensorMap packed_rows_map(const View& v, int heads, int box_positions);

// An array whose rows end where a sequence ends, see RowOrigin; x moves in steps of `step` bytes.
struct EndingMap {
  int64_t row, head, batch;  // in steps; row 0: the array is too large for such a map
  int64_t step;
};
EndingMap ending_steps(const View& v);
CUtensorMap ending_rows_map(const View& v, const EndingMap& steps, int box_rows);
CUtensorMap packed_ending_rows_map(const View& v, int heads, const EndingMap& steps, int box_positions);  // steps: of every_nth_head

// {keys, rows, heads or 1, batch or 1} of 16-bit elements in boxes of `columns` keys, 64 or 32 (then swizzled over 64 bytes).
CUtensorMap bias_map(const View& v, int columns, int box_rows);

}  // namespace attile::cuda::sm90
