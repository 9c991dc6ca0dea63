// Segment one image with a model file of eomt-deploy and ONNX Runtime: see docs/cpp.md.
//
//   segment model.onnx image.ppm labels.pgm
//
// Prints one line per segment: number, class, score, area and bounding box. Writes the labels of
// the pixels: class ids (semantic) or numbers of segments + 1, 0 for none. For an instance model,
// better instances hide worse ones.
#include <eomt.hpp>
#include <onnxruntime_cxx_api.h>

#include <array>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Image {
  std::int32_t height = 0, width = 0;
  std::vector<std::uint8_t> pixels;  // RGB [height, width, 3]
};

// Read a binary PPM file with 8 bits per channel and without comments.
Image read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string magic;
  Image image;
  int maximum = 0;
  file >> magic >> image.width >> image.height >> maximum;
  file.get();  // one space before the pixels
  if (!file || magic != "P6" || maximum != 255 || image.width < 1 || image.height < 1)
    throw std::runtime_error(path + " is not a binary PPM file with 8 bits per channel.");
  image.pixels.resize(std::size_t{3} * image.height * image.width);
  file.read(reinterpret_cast<char*>(image.pixels.data()),
            static_cast<std::streamsize>(image.pixels.size()));
  if (!file) throw std::runtime_error(path + " is cut off.");
  return image;
}

// Write a binary PGM file with 16 bits per pixel.
void write_pgm(const std::string& path, const eomt::Result& result,
               const std::vector<std::uint16_t>& labels) {
  std::ofstream file(path, std::ios::binary);
  file << "P5\n" << result.width() << ' ' << result.height() << "\n65535\n";
  for (const std::uint16_t label : labels)
    file.put(static_cast<char>(label >> 8)).put(static_cast<char>(label & 255));
  if (!file) throw std::runtime_error(path + " cannot be written.");
}

// One label per pixel, for all tasks.
std::vector<std::uint16_t> labels_of(const eomt::Result& result) {
  std::vector<std::uint16_t> labels(static_cast<std::size_t>(result.height()) * result.width());
  if (result.task() != eomt::Task::instance) {
    for (std::int32_t y = 0, i = 0; y < result.height(); y++)
      for (std::int32_t x = 0; x < result.width(); x++, i++)
        labels[i] = static_cast<std::uint16_t>(result.label(y, x));
    return labels;
  }
  for (std::int32_t segment = result.size() - 1; segment >= 0; segment--) {
    const auto runs = result.runs(segment);
    for (std::size_t run = 0; run < runs.size(); run += 2)
      for (std::uint32_t i = runs[run]; i < runs[run + 1]; i++)
        labels[i] = static_cast<std::uint16_t>(segment + 1);
  }
  return labels;
}

// The values of a network output.
eomt::View<float> values(const Ort::Value& output) {
  const auto info = output.GetTensorTypeAndShapeInfo();
  if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
    throw std::runtime_error("The outputs of the model are not FP32.");
  return {output.GetTensorData<float>(), info.GetElementCount()};
}

void run(const std::string& model_path, const std::string& image_path, const std::string& out) {
  eomt::check_version();
  const Image image = read_ppm(image_path);

  Ort::Env environment(ORT_LOGGING_LEVEL_ERROR, "eomt");
  Ort::SessionOptions options;
  options.AddConfigEntry("session.x64quantprecision", "1");  // as eomt-deploy does
  Ort::Session session(environment, model_path.c_str(), options);
  Ort::AllocatorWithDefaultOptions allocator;
  const auto json =
      session.GetModelMetadata().LookupCustomMetadataMapAllocated(EOMT_METADATA_KEY, allocator);
  if (!json) throw std::runtime_error(model_path + " was not exported by eomt-deploy.");

  const eomt::Model model(json.get());
  const eomt::Geometry geometry(model, image.height, image.width);
  std::vector<std::uint8_t> inputs =
      geometry.preprocess(image.pixels.data(), std::size_t{3} * image.width);
  const std::array<std::int64_t, 4> shape{geometry.inputs(), model.height(), model.width(), 3};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const Ort::Value tensor = Ort::Value::CreateTensor<std::uint8_t>(
      memory, inputs.data(), inputs.size(), shape.data(), shape.size());
  const char* input_names[] = {"images"};
  const char* output_names[] = {"class_logits", "mask_logits"};
  const std::vector<Ort::Value> outputs =
      session.Run(Ort::RunOptions{nullptr}, input_names, &tensor, 1, output_names, 2);

  const eomt::Result result(model, geometry, values(outputs[0]), values(outputs[1]));
  std::cout.precision(17);  // all digits of a double
  for (std::int32_t i = 0; i < result.size(); i++) {
    const eomt::Segment segment = result[i];
    std::cout << i << ' ' << model.class_name(segment.class_id) << ' ' << segment.score << ' '
              << segment.area;
    for (const std::int32_t side : segment.box) std::cout << ' ' << side;
    std::cout << '\n';
  }
  write_pgm(out, result, labels_of(result));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::cerr << "Usage: segment model.onnx image.ppm labels.pgm\n";
    return 2;
  }
  try {
    run(arguments[1], arguments[2], arguments[3]);
  } catch (const std::exception& error) {
    std::cerr << "Error: " << error.what() << '\n';
    return 1;
  }
}
