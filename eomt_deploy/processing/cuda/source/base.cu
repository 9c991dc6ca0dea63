// Pre- and post-processing on the GPU, with the same results as eomt_deploy/processing.
//
// The files of this folder are compiled as one, without any header, by NVRTC. They are also plain
// C++: if EOMT_HOST is defined, the including file defines the names of the first block, and kernels
// become loops. This way the tests compare this code with the CPU path without a GPU.
//
// There are two kinds of kernels. A kernel with EXPORT_THREADS is written for one thread. A kernel
// with EXPORT_BLOCKS is written for a block of BLOCK threads: each loop THREADS(t) runs its body for
// every thread t and then waits for all of them. Variables that a thread keeps from one such loop to
// the next are arrays of OWN elements, of which it uses element MINE(t). Other variables are the same
// in all threads. BARRIER waits for all threads: it is needed after a shared variable was read outside
// of such a loop, before it is written again.
//
// Results are the same in every run: sums are integers, which do not depend on the order, or are
// computed by one thread in a fixed order. The file is compiled with --fmad=false, because a
// contracted a * b + c rounds once but the CPU path rounds twice. An intended fused multiply-add is
// written as FUSED.

#define BLOCK 256
#define WORDS (BLOCK / 32)  // words with one bit for each thread of a block

typedef unsigned char Byte;
typedef unsigned long long Count;

#ifndef EOMT_HOST
#define DEVICE static __device__ __forceinline__
#define KERNEL extern "C" __global__ void __launch_bounds__(BLOCK, 2)
#define EXPORT_THREADS(name)
#define EXPORT_BLOCKS(name)
#define SHARED __shared__
#define THREADS(t) for (int t = threadIdx.x, more = 1; more; more = 0, __syncthreads())
#define BARRIER __syncthreads();
#define OWN 1
#define MINE(t) ((void)(t), 0)

DEVICE long long thread_x() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }

DEVICE int count_bits(unsigned word) { return __popc(word); }
DEVICE int lowest_bit(unsigned word) { return __ffs(word) - 1; }    // word must not be 0
DEVICE int highest_bit(unsigned word) { return 31 - __clz(word); }  // word must not be 0

DEVICE void set_bit(unsigned* words, int index) { atomicOr(words + index / 32, 1u << index % 32); }
DEVICE void add_to(int* total, int value) { atomicAdd(total, value); }
DEVICE void add_to(Count* total, Count value) { atomicAdd(total, value); }
DEVICE void raise_to(unsigned* highest, unsigned value) { atomicMax(highest, value); }
// Most values are not higher; then a load is enough.
DEVICE void raise_to(int* highest, int value) {
  if (*(volatile int*)highest < value) atomicMax(highest, value);
}

// The functions of this block sum over the warp first. All 32 threads must call them.
DEVICE void count_up(Count* counter, bool yes) {
  unsigned votes = __ballot_sync(0xffffffffu, yes);
  if ((threadIdx.x & 31) == 0 && votes) atomicAdd(counter, (Count)__popc(votes));
}

DEVICE void add_up(Count* counter, Count value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_down_sync(0xffffffffu, value, step);
  if ((threadIdx.x & 31) == 0 && value) atomicAdd(counter, value);
}

// Count pixel (x, y) for `key`, which is negative for none. Threads of a warp have the same y and
// ascending x. If `boxes` is given, enlarge box `key`: see enlarge_box.
DEVICE void enlarge_box(int* box, int height, int width, int x0, int y, int x1);
DEVICE void claim(Count* counters, int* boxes, int key, int height, int width, int x, int y) {
  unsigned same = __match_any_sync(0xffffffffu, key);
  int lane = threadIdx.x & 31;
  if (key < 0 || __ffs(same) - 1 != lane) return;
  atomicAdd(counters + key, (Count)__popc(same));
  if (boxes) enlarge_box(boxes + 4 * key, height, width, x, y, x + 32 - __clz(same) - lane);
}
#endif

#define INLINE DEVICE
#define FUSED(a, b, c) fmaf(a, b, c)
