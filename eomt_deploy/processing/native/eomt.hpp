// eomt.hpp: C++17 wrapper of eomt.h. Objects free themselves, and errors are exceptions.
//
// eomt.h describes shapes, types and units. All classes can be moved, but not copied. Text and
// arrays that a method returns as a view are valid as long as the object that returned them.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "eomt.h"

namespace eomt {

// An error of the library; `code` is one of EOMT_NO_MEMORY, EOMT_WRONG_ARGUMENT, …
class Error : public std::runtime_error {
 public:
  explicit Error(int code) : std::runtime_error(eomt_error_message()), code_(code) {}
  int code() const noexcept { return code_; }

 private:
  int code_;
};

inline void check(int code) {
  if (code != EOMT_OK) throw Error(code);
}

// Check at the start of a program that header and library fit. Throws std::runtime_error.
inline void check_version() {
  if (eomt_abi_version() != EOMT_ABI_VERSION)
    throw std::runtime_error("eomt.h and the eomt library have different ABI versions.");
}

template <auto function>
struct Free {
  template <typename Object>
  void operator()(Object* object) const noexcept {
    function(object);
  }
};

// Values in memory of another object: a minimal std::span (C++20).
template <typename Value>
class View {
 public:
  View(const Value* data, std::size_t size) : data_(data), size_(size) {}
  const Value* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  const Value* begin() const noexcept { return data_; }
  const Value* end() const noexcept { return data_ + size_; }
  const Value& operator[](std::size_t index) const noexcept { return data_[index]; }

 private:
  const Value* data_;
  std::size_t size_;
};

enum class Task { semantic = EOMT_SEMANTIC, instance = EOMT_INSTANCE, panoptic = EOMT_PANOPTIC };
enum class Format { rgb = EOMT_RGB, bgr = EOMT_BGR, rgba = EOMT_RGBA, bgra = EOMT_BGRA };

// Thresholds of one call; an empty one stands for the model's default.
struct Thresholds {
  std::optional<double> score, mask, overlap;
};

// The description of a model, e.g. from the ONNX metadata entry EOMT_METADATA_KEY.
class Model {
 public:
  explicit Model(std::string_view json) {
    eomt_model* made = nullptr;
    check(eomt_model_read(json.data(), json.size(), &made));
    handle_.reset(made);
  }

  Task task() const noexcept { return static_cast<Task>(eomt_model_task(get())); }
  std::string_view name() const noexcept { return eomt_model_name(get()); }
  std::string_view precision() const noexcept { return eomt_model_precision(get()); }
  std::int64_t height() const noexcept { return eomt_model_height(get()); }
  std::int64_t width() const noexcept { return eomt_model_width(get()); }
  std::int64_t mask_height() const noexcept { return eomt_model_mask_height(get()); }
  std::int64_t mask_width() const noexcept { return eomt_model_mask_width(get()); }
  std::int64_t queries() const noexcept { return eomt_model_queries(get()); }
  std::int64_t classes() const noexcept { return eomt_model_classes(get()); }
  std::int64_t batch() const noexcept { return eomt_model_batch(get()); }

  // Facts of a class. Throws std::out_of_range.
  std::string_view class_name(int class_id) const {
    return eomt_model_class_name(get(), known(class_id));
  }
  bool class_is_thing(int class_id) const {
    return eomt_model_class_is_thing(get(), known(class_id)) == 1;
  }
  std::uint32_t class_color(int class_id) const {
    return static_cast<std::uint32_t>(eomt_model_class_color(get(), known(class_id)));
  }

  const eomt_model* get() const noexcept { return handle_.get(); }

 private:
  int known(int class_id) const {
    if (class_id < 0 || class_id >= classes()) throw std::out_of_range("unknown class id");
    return class_id;
  }

  std::unique_ptr<eomt_model, Free<eomt_model_free>> handle_;
};

// How images of height x width pixels become network inputs.
class Geometry {
 public:
  Geometry(const Model& model, std::int32_t height, std::int32_t width) {
    eomt_geometry* made = nullptr;
    check(eomt_geometry_plan(model.get(), height, width, &made));
    handle_.reset(made);
  }

  std::int64_t inputs() const noexcept { return eomt_geometry_inputs(get()); }
  std::int32_t height() const noexcept { return eomt_geometry_height(get()); }
  std::int32_t width() const noexcept { return eomt_geometry_width(get()); }
  std::size_t input_bytes() const noexcept { return eomt_geometry_input_bytes(get()); }

  // The network inputs [N, H, W, 3] of an image whose rows are `stride` bytes apart.
  std::vector<std::uint8_t> preprocess(const std::uint8_t* pixels, std::size_t stride,
                                       Format format = Format::rgb,
                                       int pillow = EOMT_PILLOW_13) const {
    std::vector<std::uint8_t> inputs(input_bytes());
    check(eomt_preprocess(get(), pixels, stride, static_cast<int>(format), pillow, inputs.data(),
                          inputs.size()));
    return inputs;
  }

  const eomt_geometry* get() const noexcept { return handle_.get(); }

 private:
  std::unique_ptr<eomt_geometry, Free<eomt_geometry_free>> handle_;
};

// One segment of a panoptic or instance result.
struct Segment {
  std::int32_t class_id;
  double score;
  std::uint32_t area;
  std::array<std::int32_t, 4> box;  // x0, y0, x1, y1; x1 and y1 exclusive
};

// The segmentation of one image.
class Result {
 public:
  Result(const Model& model, const Geometry& geometry, View<float> class_logits,
         View<float> mask_logits, const Thresholds& thresholds = {}) {
    eomt_result* made = nullptr;
    check(eomt_postprocess(model.get(), geometry.get(), class_logits.data(), class_logits.size(),
                           mask_logits.data(), mask_logits.size(), thresholds.score.value_or(-1),
                           thresholds.mask.value_or(-1), thresholds.overlap.value_or(-1), &made));
    handle_.reset(made);
  }

  Task task() const noexcept { return static_cast<Task>(eomt_result_task(get())); }
  std::int32_t height() const noexcept { return eomt_result_height(get()); }
  std::int32_t width() const noexcept { return eomt_result_width(get()); }
  std::int32_t size() const noexcept { return eomt_result_count(get()); }

  // Bytes of one label: 1, 2, or 0 for instances, which have no labels.
  std::int32_t label_bytes() const noexcept { return eomt_result_label_bytes(get()); }
  const void* labels() const noexcept { return eomt_result_labels(get()); }

  // The label of a pixel: class id (semantic), or segment + 1 (panoptic). Throws std::out_of_range.
  int label(std::int32_t y, std::int32_t x) const {
    if (y < 0 || y >= height() || x < 0 || x >= width() || !labels())
      throw std::out_of_range("there is no label at this position");
    const std::size_t index = static_cast<std::size_t>(y) * width() + x;
    return label_bytes() == 1 ? static_cast<const std::uint8_t*>(labels())[index]
                              : static_cast<const std::uint16_t*>(labels())[index];
  }

  // A segment. Throws std::out_of_range.
  Segment operator[](std::int32_t index) const {
    const std::int32_t* box = eomt_result_box(get(), index);
    if (!box) throw std::out_of_range("unknown segment");
    return {eomt_result_class(get(), index), eomt_result_score(get(), index),
            eomt_result_area(get(), index), {box[0], box[1], box[2], box[3]}};
  }

  // The mask of an instance as pairs of start and end (exclusive) in the flattened image.
  View<std::uint32_t> runs(std::int32_t index) const noexcept {
    return {eomt_result_runs(get(), index), 2 * std::size_t{eomt_result_run_count(get(), index)}};
  }

  // The mask of a segment, uint8 [height, width].
  std::vector<std::uint8_t> mask(std::int32_t index) const {
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(height()) * width());
    check(eomt_result_mask(get(), index, pixels.data(), pixels.size()));
    return pixels;
  }

  const eomt_result* get() const noexcept { return handle_.get(); }

 private:
  std::unique_ptr<eomt_result, Free<eomt_result_free>> handle_;
};

}  // namespace eomt
