// Runs a library that nnc compiled, with the TVM runtime alone: on the board, or here under emulation.
//
//   runner MODULE.so OUTPUT_FOLDER REPEATS INPUT.npy...
//
// Inputs are in the model's order. Outputs are written to OUTPUT_FOLDER/0.npy, 1.npy, ...; the seconds of every
// repetition go to standard output, one per line.

#include <tvm/ffi/container/shape.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;

namespace {

constexpr DLDevice kCpu{kDLCPU, 0};
constexpr int kPooledAllocator = 2;  // tvm::runtime::memory::AllocatorType::kPooled

struct AlignedMemory {
  void AllocData(DLTensor* tensor) {
    tensor->data = std::aligned_alloc(64, (ffi::GetDataSize(*tensor) + 63) / 64 * 64);
  }
  void FreeData(DLTensor* tensor) { std::free(tensor->data); }
};

[[noreturn]] void Fail(const std::string& message) { throw std::runtime_error(message); }

// The text between `from` and `to` in the header of an .npy file.
std::string Between(const std::string& header, const std::string& from, const std::string& to) {
  size_t begin = header.find(from);
  if (begin == std::string::npos) Fail("no " + from + " in an .npy header");
  begin += from.size();
  return header.substr(begin, header.find(to, begin) - begin);
}

// "f4" -> float32, as numpy's array interface writes types.
DLDataType TypeOf(const std::string& code) {
  static const std::string kinds = "iuf";  // in the order of DLDataTypeCode
  uint8_t bits = static_cast<uint8_t>(8 * std::stoi(code.substr(1)));
  if (code[0] == 'b') return DLDataType{kDLBool, bits, 1};
  size_t kind = kinds.find(code[0]);
  if (kind == std::string::npos) Fail("inputs of type " + code + " are not supported");
  return DLDataType{static_cast<uint8_t>(kind), bits, 1};
}

std::string CodeOf(DLDataType type) {
  char kind = type.code == kDLBool ? 'b' : type.code <= kDLFloat ? "iuf"[type.code] : 'V';
  return (type.bits == 8 ? "|" : "<") + std::string(1, kind) + std::to_string((type.bits + 7) / 8);
}

ffi::Tensor ReadNpy(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char start[10];  // "\x93NUMPY", version (2 bytes), length of the header (2 bytes in version 1)
  if (!file.read(start, sizeof start) || std::memcmp(start, "\x93NUMPY\x01", 7) != 0) Fail(path + " is not .npy 1.0");
  std::string header(static_cast<unsigned char>(start[8]) + 256 * static_cast<unsigned char>(start[9]), ' ');
  file.read(header.data(), static_cast<std::streamsize>(header.size()));
  if (header.find("'fortran_order': False") == std::string::npos) Fail(path + " is not in C order");
  std::vector<int64_t> shape;
  std::string sizes = Between(header, "'shape': (", ")");
  for (const char* at = sizes.c_str(); *at;) {
    char* end;
    int64_t size = std::strtoll(at, &end, 10);
    if (end == at) break;
    shape.push_back(size);
    at = end + std::strspn(end, ", ");
  }
  DLDataType type = TypeOf(Between(header, "'descr': '", "'").substr(1));
  ffi::Tensor tensor = ffi::Tensor::FromNDAlloc(AlignedMemory(), ffi::Shape(shape.begin(), shape.end()), type, kCpu);
  auto bytes = static_cast<std::streamsize>(ffi::GetDataSize(*tensor.GetDLTensorPtr()));
  if (!file.read(static_cast<char*>(tensor.data_ptr()), bytes)) Fail(path + " is truncated");
  return tensor;
}

void WriteNpy(const std::string& path, const ffi::Tensor& tensor) {
  std::string shape;
  for (int64_t size : tensor.shape()) shape += std::to_string(size) + ",";
  std::string header = "{'descr': '" + CodeOf(tensor.dtype()) + "', 'fortran_order': False, 'shape': (" + shape + ")}";
  header.resize((header.size() + 1 + 10 + 63) / 64 * 64 - 10 - 1, ' ');  // data starts at a multiple of 64
  header += '\n';
  const char length[2] = {static_cast<char>(header.size() & 255), static_cast<char>(header.size() >> 8)};
  std::ofstream file(path, std::ios::binary);
  file.write("\x93NUMPY\x01\x00", 8).write(length, 2) << header;
  file.write(static_cast<const char*>(tensor.data_ptr()), ffi::GetDataSize(*tensor.GetDLTensorPtr()));
  if (!file.flush()) Fail(path + " can't be written");
}

// The Relax virtual machine of a library, with the functions it offers.
class Machine {
 public:
  explicit Machine(const std::string& library)
      : vm_(Function(ffi::Module::LoadFromFile(library), "vm_load_executable")().cast<ffi::Module>()) {
    Function(vm_, "vm_initialization")(static_cast<int>(kDLCPU), 0, kPooledAllocator);
  }

  void SetInputs(const std::vector<ffi::Tensor>& inputs) {
    std::vector<ffi::AnyView> arguments{main_};
    for (const ffi::Tensor& input : inputs) arguments.push_back(input);
    ffi::Any ignored;
    Function(vm_, "set_input").CallPacked(ffi::PackedArgs(arguments.data(), arguments.size()), &ignored);
  }

  double Run() {
    ffi::Function invoke = Function(vm_, "invoke_stateful");
    auto start = std::chrono::steady_clock::now();
    invoke(main_);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  std::vector<ffi::Tensor> Outputs() {
    ffi::Function get = Function(vm_, "get_output");
    int64_t count = Function(vm_, "get_output_arity")(main_).cast<int64_t>();
    if (count < 0) return {get(main_).cast<ffi::Tensor>()};  // one tensor, not a tuple
    std::vector<ffi::Tensor> outputs;
    for (int64_t index = 0; index < count; ++index) outputs.push_back(get(main_, index).cast<ffi::Tensor>());
    return outputs;
  }

 private:
  static ffi::Function Function(const ffi::Module& module, const char* name) {
    auto function = module->GetFunction(name, true);
    if (!function.has_value()) Fail(std::string("the library has no function ") + name);
    return *function;
  }

  ffi::Module vm_;
  ffi::String main_{"main"};
};

}  // namespace

int main(int count, char** arguments) {
  if (count < 4) {
    std::cerr << "usage: runner MODULE.so OUTPUT_FOLDER REPEATS INPUT.npy...\n";
    return 2;
  }
  try {
    Machine machine(arguments[1]);
    std::vector<ffi::Tensor> inputs;
    for (int index = 4; index < count; ++index) inputs.push_back(ReadNpy(arguments[index]));
    machine.SetInputs(inputs);
    for (int repeat = std::max(1, std::atoi(arguments[3])); repeat > 0; --repeat) std::printf("%.9f\n", machine.Run());
    std::vector<ffi::Tensor> outputs = machine.Outputs();
    for (size_t index = 0; index < outputs.size(); ++index) {
      WriteNpy(std::string(arguments[2]) + "/" + std::to_string(index) + ".npy", outputs[index]);
    }
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
