// The CUDA kernels as plain C++. A kernel with EXPORT_THREADS is called once for every thread of its
// grid, one after another; a kernel with EXPORT_BLOCKS is called once for every block, and its THREADS
// are loops. A launch takes what CUDA's takes: the sizes, and pointers to the arguments.
#define EOMT_HOST
#include <cmath>
#include <cstddef>
#include <type_traits>
#include <utility>

#define DEVICE static inline
#define KERNEL static void
#define SHARED static
#define THREADS(t) for (int turn = 0, t = thread_of(0); turn < BLOCK; t = thread_of(++turn))
#define BARRIER
#define OWN BLOCK
#define MINE(t) t

struct Launch {
  int grid_x, grid_y, block_x;
};

// The order of the threads of a block: results must not depend on it.
static int order = 1;
DEVICE int thread_of(int turn) { return (turn * order) & 255; }
extern "C" void set_order(int odd_number) { order = odd_number; }

static Launch launch;
static int block_x_now, block_y_now, thread_x_now;

DEVICE long long thread_x() { return (long long)block_x_now * launch.block_x + thread_x_now; }
DEVICE int block_x() { return block_x_now; }
DEVICE int block_y() { return block_y_now; }
DEVICE int count_bits(unsigned word) { return __builtin_popcount(word); }
DEVICE int lowest_bit(unsigned word) { return __builtin_ctz(word); }
DEVICE int highest_bit(unsigned word) { return 31 - __builtin_clz(word); }
DEVICE void set_bit(unsigned* words, int index) { words[index / 32] |= 1u << index % 32; }
template <class T, class U>
static void add_to(T* total, U value) { *total += value; }
template <class T>
static void raise_to(T* highest, T value) { *highest = *highest < value ? value : *highest; }
DEVICE void count_up(unsigned long long* counter, bool yes) { *counter += yes; }
DEVICE void add_up(unsigned long long* counter, unsigned long long value) { *counter += value; }
DEVICE void enlarge_box(int* box, int height, int width, int x0, int y, int x1);
DEVICE void claim(unsigned long long* counters, int* boxes, int key, int height, int width, int x,
                  int y) {
  if (key < 0) return;
  counters[key]++;
  if (boxes) enlarge_box(boxes + 4 * key, height, width, x, y, x + 1);
}

template <class... T, size_t... I>
static void call(void (*kernel)(T...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_const_t<T>*>(arguments[I])...);
}

template <class... T>
static void run(void (*kernel)(T...), const Launch* how, void** arguments, bool threads) {
  launch = *how;
  for (block_y_now = 0; block_y_now < launch.grid_y; block_y_now++)
    for (block_x_now = 0; block_x_now < launch.grid_x; block_x_now++)
      for (thread_x_now = 0; thread_x_now < (threads ? launch.block_x : 1); thread_x_now++)
        call(kernel, arguments, std::index_sequence_for<T...>());
}

// One letter for each parameter, as numpy names its types: a launch with others is a mistake that
// CUDA cannot see.
template <class T>
constexpr char letter() {
  if (std::is_pointer_v<T>) return 'P';
  if (std::is_same_v<T, int>) return 'i';
  if (std::is_same_v<T, long long>) return 'q';
  if (std::is_same_v<T, float>) return 'f';
  if (std::is_same_v<T, double>) return 'd';
  return '?';
}

template <class... T>
static const char* letters(void (*)(T...)) {
  static const char text[] = {letter<T>()..., 0};
  return text;
}

#define EXPORT(name, threads)                                                              \
  extern "C" void run_##name(const Launch* how, void** arguments) {                        \
    run(name, how, arguments, threads);                                                    \
  }                                                                                        \
  extern "C" const char* letters_##name() { return letters(name); }
#define EXPORT_THREADS(name) EXPORT(name, true)
#define EXPORT_BLOCKS(name) EXPORT(name, false)

#include "kernels.cu"

extern "C" float host_from_half(unsigned short bits) { return from_half(bits); }
