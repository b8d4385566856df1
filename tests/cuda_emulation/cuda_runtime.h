// In place of CUDA's.
#pragma once

#include "cuda_runtime_api.h"
