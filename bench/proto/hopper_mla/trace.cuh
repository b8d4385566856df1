// -DTRACE: cycle and nanosecond stamps of every CTA, for finding where time goes. Off: nothing.
#pragma once
#ifdef TRACE
constexpr int kTracePoints = 16, kTraceBlocks = 24, kTraceRoles = 3;
#define TRACE_AT(p, role, n, point)                                                                                        \
    if ((threadIdx.x & 127) == 0 && (n) < kTraceBlocks)                                                                    \
        (p).trace[(((blockIdx.y * gridDim.x + blockIdx.x) * kTraceRoles + (role)) * kTraceBlocks + (n)) * kTracePoints + (point)] = clock64()
__device__ __forceinline__ long long nanoseconds() {
    long long t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}
#define TRACE_TIME(p, role, point)                                                                                         \
    if ((threadIdx.x & 127) == 0)                                                                                          \
        (p).trace[(((blockIdx.y * gridDim.x + blockIdx.x) * kTraceRoles + (role)) * kTraceBlocks) * kTracePoints + (point)] = nanoseconds()
#else
#define TRACE_TIME(p, role, point) ((void)0)
#define TRACE_AT(p, role, n, point) ((void)0)
#endif
