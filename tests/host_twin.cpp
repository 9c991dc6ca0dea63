// The CUDA kernels as plain C++: a kernel is called once for every thread of its grid, one after
// another. A launch takes what CUDA's takes: the sizes, and pointers to the arguments.
#define EOMT_HOST
#include <cmath>
#include <cstddef>
#include <type_traits>
#include <utility>

#define DEVICE static inline
#define KERNEL static void

struct Launch {
  int grid_x, grid_y, block_x;
};

static Launch launch;
static int block_x_now, block_y_now, thread_x_now;

DEVICE long long thread_x() { return (long long)block_x_now * launch.block_x + thread_x_now; }
DEVICE int block_y() { return block_y_now; }
DEVICE void count_up(unsigned long long* counter, bool yes) { *counter += yes; }
DEVICE void add_up(unsigned long long* counter, unsigned long long value) { *counter += value; }

template <class... T, size_t... I>
static void call(void (*kernel)(T...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_const_t<T>*>(arguments[I])...);
}

template <class... T>
static void run(void (*kernel)(T...), const Launch* how, void** arguments) {
  launch = *how;
  for (block_y_now = 0; block_y_now < launch.grid_y; block_y_now++)
    for (block_x_now = 0; block_x_now < launch.grid_x; block_x_now++)
      for (thread_x_now = 0; thread_x_now < launch.block_x; thread_x_now++)
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
  return '?';
}

template <class... T>
static const char* letters(void (*)(T...)) {
  static const char text[] = {letter<T>()..., 0};
  return text;
}

#define EXPORT(name)                                                                          \
  extern "C" void run_##name(const Launch* how, void** arguments) { run(name, how, arguments); } \
  extern "C" const char* letters_##name() { return letters(name); }

#include "kernels.cu"

extern "C" float host_from_half(unsigned short bits) { return from_half(bits); }
