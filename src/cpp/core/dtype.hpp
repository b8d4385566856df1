// The data types, one row each: name, DLPack code and bits, epsilon. Everything that speaks of types reads this table.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "attile/attile.h"

namespace attile {

enum class DType : uint8_t { f64, f32, f16, bf16, f8e4m3, boolean, i8, i16, i32, i64, u8, u16, u32, u64, none };

struct DTypeInfo {
  DType id;
  const char* name;
  uint8_t code;
  uint8_t bits;
  double epsilon;  // distance of 1 to the next value; 0 where it is no floating type
};

inline constexpr DTypeInfo kDTypes[] = {
    {DType::f64, "float64", 2, 64, 0x1p-52},      {DType::f32, "float32", 2, 32, 0x1p-23},
    {DType::f16, "float16", 2, 16, 0x1p-10},      {DType::bf16, "bfloat16", 4, 16, 0x1p-7},
    {DType::f8e4m3, "float8_e4m3", 10, 8, 0x1p-3}, {DType::boolean, "bool", 6, 8, 0},
    {DType::i8, "int8", 0, 8, 0},                 {DType::i16, "int16", 0, 16, 0},
    {DType::i32, "int32", 0, 32, 0},              {DType::i64, "int64", 0, 64, 0},
    {DType::u8, "uint8", 1, 8, 0},                {DType::u16, "uint16", 1, 16, 0},
    {DType::u32, "uint32", 1, 32, 0},             {DType::u64, "uint64", 1, 64, 0},
};

constexpr const DTypeInfo& info(DType t) { return kDTypes[static_cast<int>(t)]; }
constexpr size_t size_of(DType t) { return t == DType::none ? 0 : info(t).bits / 8; }
constexpr bool is_floating(DType t) { return t <= DType::f8e4m3; }
constexpr bool is_index(DType t) { return t == DType::i32 || t == DType::i64; }
constexpr bool is_mask(DType t) { return t >= DType::boolean && t <= DType::u64; }
// The type of scores, sums and lse.
constexpr DType accumulator_of(DType t) { return t == DType::f64 ? DType::f64 : DType::f32; }

inline DType dtype_of(attile_dtype t) {
  for (const DTypeInfo& row : kDTypes)
    if (t.lanes == 1 && row.code == t.code && row.bits == t.bits) return row.id;
  return DType::none;
}

inline std::string name_of(attile_dtype t) {
  const DType id = dtype_of(t);
  if (id != DType::none) return info(id).name;
  const char* kind = t.code == 0 ? "int" : t.code == 1 ? "uint" : t.code == 2 ? "float" : t.code == 5 ? "complex" : nullptr;
  if (kind && t.lanes == 1) return kind + std::to_string(t.bits);
  return "DLPack type (code " + std::to_string(t.code) + ", bits " + std::to_string(t.bits) + ", lanes " +
         std::to_string(t.lanes) + ")";
}

constexpr attile_dtype to_dlpack(DType t) { return {info(t).code, info(t).bits, 1}; }

}  // namespace attile
