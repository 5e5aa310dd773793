// SPDX-License-Identifier: Apache-2.0
// SafetensorsWriter: lays tensors out so that each is aligned, writes them in any order, and makes
// the files appear at the end.
#include <algorithm>
#include <bit>
#include <filesystem>
#include <optional>
#include <unordered_map>
#include <utility>

#include "import/crc32c.hpp"
#include "import/errors.hpp"
#include "import/json_reader.hpp"
#include "import/output_file.hpp"
#include "import/safetensors_header.hpp"
#include "mixgemm/checkpoint.hpp"
#include "util/join.hpp"

namespace mixgemm {
namespace {

namespace fs = std::filesystem;

/// The data section begins at a multiple of this, one plane of packed codes.
constexpr std::uint64_t kDataAlignment = 512;

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// The largest power of two, up to kDataAlignment, that divides the size. Tensors are laid out in
/// falling order of it, so that each begins at a multiple of its own: packed codes at 512 bytes,
/// every tensor at its element size, without the holes that the format forbids.
std::uint64_t natural_alignment(std::uint64_t bytes) {
  return std::uint64_t{1} << std::countr_zero(bytes | kDataAlignment);
}

/// model.safetensors → model-00002-of-00003.safetensors.
std::string shard_path(const std::string& path, std::size_t index, std::size_t count) {
  constexpr std::string_view kSuffix = ".safetensors";
  const bool has_suffix = path.ends_with(kSuffix);
  const std::string_view stem =
      has_suffix ? std::string_view(path).substr(0, path.size() - kSuffix.size()) : path;
  return fmt::format("{}-{:05}-of-{:05}{}", stem, index + 1, count, has_suffix ? kSuffix : "");
}

struct Declared {
  TensorInfo info;
  std::uint64_t written = 0;
  std::uint32_t crc = 0;  // of what has been written, where a journal needs it
};

/// Bytes of an unfinished file that are read at a time to check them.
constexpr std::size_t kVerifyBytes = std::size_t{1} << 22;

/// The text on one line, reversibly.
std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    out += byte < 0x20 || byte == '\\' ? fmt::format("\\x{:02x}", byte) : std::string(1, c);
  }
  return out;
}

/// One file to be.
struct OutputShard {
  OutputFile file;
  std::vector<TensorInfo> tensors;  // in the order of their bytes
  std::uint64_t data_begin = 0;
  std::uint64_t file_bytes = 0;
};

}  // namespace

class SafetensorsWriter::Impl {
 public:
  enum class State { declaring, writing, closed };

  /// The state that a call needs, or why it can't be.
  Status require(State wanted, std::string_view call) const {
    if (!failed.ok()) return failed;
    if (state == wanted) return {};
    const char* now = state == State::declaring ? "before begin()"
                      : state == State::writing ? "after begin()"
                                                : "after finish() or abandon()";
    return failure(StatusCode::invalid_argument, "{}: {} isn't allowed {}", path, call, now);
  }

  /// Remembers a failure of the system, which ends the writing: the file couldn't be whole.
  Status fail(Status status) {
    failed = status;
    // What can be continued stays until the caller decides, by abandon() or not.
    if (!journal) outputs.clear();
    return status;
  }

  Status begin();
  Status append(const std::string& name, const void* data, std::size_t bytes);
  Status finish();

  /// What an unfinished file must have in common with this one to be continued.
  std::string identity() const;
  /// Takes over what an earlier process wrote; without anything to take over, starts the journal.
  Status resume();
  /// CRC-32C of a tensor's bytes in its unfinished file.
  Result<std::uint32_t> stored_crc(const Declared& tensor) const;

  std::string path;
  WriteOptions options;
  State state = State::declaring;
  Status failed;
  std::optional<OutputFile> first;  // created early, so that a bad path shows early
  std::optional<Journal> journal;   // instead of `first` where the writing can be continued
  std::vector<Declared> tensors;    // in order of declaration
  std::unordered_map<std::string, std::size_t> by_name;
  std::map<std::string, std::string> metadata;
  std::vector<OutputShard> outputs;
};

Status SafetensorsWriter::Impl::begin() {
  if (Status status = require(State::declaring, "begin()"); !status.ok()) return status;
  // Which tensor goes to which shard: in order of declaration, a new one when the last is full.
  std::vector<std::vector<std::size_t>> shards(1);
  std::uint64_t filled = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const std::uint64_t bytes = tensors[i].info.size_bytes();
    const bool full = options.max_shard_bytes > 0 && bytes > options.max_shard_bytes - filled;
    if (full && !shards.back().empty()) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back(i);
    filled = std::min(filled + bytes, options.max_shard_bytes);
  }
  if (shards.size() > 1) {  // the file created early was to be the only one
    first.reset();
    if (std::error_code error; fs::exists(path, error)) {
      return fail(failure(StatusCode::invalid_argument,
                          "cannot write {} shards: {} must not exist, it would be read instead of "
                          "their index",
                          shards.size(), path));
    }
  }
  for (std::size_t s = 0; s < shards.size(); ++s) {
    if (!first) {
      const std::string shard = shards.size() > 1 ? shard_path(path, s, shards.size()) : path;
      auto created = journal ? OutputFile::create_partial(shard) : OutputFile::create(shard);
      if (!created.ok()) return fail(created.status());
      first = *std::move(created);
    }
    std::vector<std::size_t>& members = shards[s];
    std::stable_sort(members.begin(), members.end(), [&](std::size_t a, std::size_t b) {
      return natural_alignment(tensors[a].info.size_bytes()) >
             natural_alignment(tensors[b].info.size_bytes());
    });
    OutputShard output{std::move(*first), {}, 0, 0};
    first.reset();
    std::uint64_t offset = 0;
    for (const std::size_t i : members) {
      TensorInfo& info = tensors[i].info;
      const std::uint64_t bytes = info.size_bytes();
      info.begin = offset;
      if (__builtin_add_overflow(offset, bytes, &offset) || offset > (std::uint64_t{1} << 62)) {
        return fail(failure(StatusCode::invalid_argument,
                            "{}: the file must be smaller than 2^62 bytes; tensor {} exceeds it",
                            path, in_quotes(info.name)));
      }
      info.end = offset;
      info.shard = static_cast<int>(s);
      output.tensors.push_back(info);
    }
    const std::uint64_t header_bytes = format_safetensors_header(output.tensors, metadata).size();
    output.data_begin = round_up(kHeaderLengthBytes + header_bytes, kDataAlignment);
    if (output.data_begin - kHeaderLengthBytes > kMaxHeaderBytes) {
      return fail(failure(StatusCode::invalid_argument,
                          "{}: the header must have at most {} bytes; got {}", path,
                          kMaxHeaderBytes, header_bytes));
    }
    output.file_bytes = output.data_begin + offset;
    outputs.push_back(std::move(output));
  }
  if (journal) {
    if (Status status = resume(); !status.ok()) return fail(status);
  }
  for (OutputShard& output : outputs) {
    if (Status status = output.file.resize(output.file_bytes); !status.ok()) return fail(status);
  }
  state = State::writing;
  return {};
}

std::string SafetensorsWriter::Impl::identity() const {
  std::uint32_t crc = 0;
  std::string sizes;
  for (const OutputShard& output : outputs) {
    const std::string header = format_safetensors_header(output.tensors, metadata);
    crc = crc32c(crc, header.data(), header.size());
    sizes += fmt::format(" {}", output.file_bytes);
  }
  return fmt::format("mixgemm journal 1, header {:08x}, bytes{}, key {}", crc, sizes,
                     escaped(options.resume_key));
}

Result<std::uint32_t> SafetensorsWriter::Impl::stored_crc(const Declared& tensor) const {
  const OutputShard& output = outputs[static_cast<std::size_t>(tensor.info.shard)];
  const std::uint64_t begin = output.data_begin + tensor.info.begin;
  const std::uint64_t bytes = tensor.info.size_bytes();
  std::vector<std::uint8_t> piece(std::min<std::uint64_t>(kVerifyBytes, bytes));
  std::uint32_t crc = 0;
  for (std::uint64_t at = 0; at < bytes; at += piece.size()) {
    const auto count = static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), bytes - at));
    if (Status s = output.file.read_at(begin + at, piece.data(), count); !s.ok()) return s;
    crc = crc32c(crc, piece.data(), count);
  }
  return crc;
}

Status SafetensorsWriter::Impl::resume() {
  const std::string wanted = identity();
  bool same = true;  // every unfinished file is there with its final size
  for (const OutputShard& output : outputs) {
    const auto size = output.file.size();
    if (!size.ok()) return size.status();
    same = same && *size == output.file_bytes;
  }
  const auto entries = journal->read(wanted);
  if (!entries.ok()) return entries.status();
  if (!same || entries->empty()) {
    for (OutputShard& output : outputs) {
      if (Status s = output.file.resize(0); !s.ok()) return s;
    }
    return journal->start(wanted);
  }
  // The journal isn't flushed with the data, so after a power cut it may promise too much: what it
  // lists counts only with the right checksum.
  for (const Journal::Entry& entry : *entries) {
    if (entry.index >= tensors.size()) continue;
    Declared& tensor = tensors[entry.index];
    const auto stored = stored_crc(tensor);
    if (!stored.ok()) return stored.status();
    if (*stored != entry.crc) continue;
    tensor.written = tensor.info.size_bytes();
    tensor.crc = entry.crc;
  }
  return {};
}

Status SafetensorsWriter::Impl::append(const std::string& name, const void* data,
                                       std::size_t bytes) {
  if (state == State::declaring && failed.ok()) {
    if (Status status = begin(); !status.ok()) return status;
  }
  if (Status status = require(State::writing, "writing"); !status.ok()) return status;
  const auto it = by_name.find(name);
  if (it == by_name.end()) {
    return failure(StatusCode::not_found, "{}: tensor {} must be declared before it is written",
                   path, in_quotes(name));
  }
  Declared& tensor = tensors[it->second];
  if (bytes > tensor.info.size_bytes() - tensor.written) {
    return failure(StatusCode::invalid_argument,
                   "{}: tensor {}: must get {} bytes in all; got {} after {}", path,
                   in_quotes(name), tensor.info.size_bytes(), bytes, tensor.written);
  }
  OutputShard& output = outputs[static_cast<std::size_t>(tensor.info.shard)];
  const std::uint64_t offset = output.data_begin + tensor.info.begin + tensor.written;
  if (Status status = output.file.write_at(offset, data, bytes); !status.ok()) return fail(status);
  tensor.written += bytes;
  if (!journal) return {};
  tensor.crc = crc32c(tensor.crc, data, bytes);
  if (tensor.written != tensor.info.size_bytes()) return {};
  Status status = journal->append({it->second, tensor.crc});
  return status.ok() ? status : fail(status);
}

Status SafetensorsWriter::Impl::finish() {
  if (state == State::declaring && failed.ok()) {
    if (Status status = begin(); !status.ok()) return status;
  }
  if (Status status = require(State::writing, "finish()"); !status.ok()) return status;
  for (const Declared& tensor : tensors) {
    if (tensor.written != tensor.info.size_bytes()) {
      return failure(StatusCode::invalid_argument,
                     "{}: tensor {} must be written before finish(); got {} of {} bytes", path,
                     in_quotes(tensor.info.name), tensor.written, tensor.info.size_bytes());
    }
  }
  for (OutputShard& output : outputs) {
    std::string header(kHeaderLengthBytes, '\0');
    for (std::uint64_t i = 0; i < kHeaderLengthBytes; ++i) {
      header[i] = static_cast<char>((output.data_begin - kHeaderLengthBytes) >> (8 * i) & 0xff);
    }
    header += format_safetensors_header(output.tensors, metadata);
    header.resize(output.data_begin, ' ');
    if (Status s = output.file.write_at(0, header.data(), header.size()); !s.ok()) return fail(s);
    if (Status s = output.file.flush(); !s.ok()) return fail(s);
  }
  if (outputs.size() > 1) {
    std::map<std::string, std::string> files;
    std::uint64_t total_bytes = 0;
    for (const OutputShard& output : outputs) {
      const std::string file = fs::path(output.file.target()).filename().string();
      for (const TensorInfo& tensor : output.tensors) {
        files[tensor.name] = file;
        total_bytes += tensor.size_bytes();
      }
    }
    const std::string text = format_safetensors_index(files, total_bytes);
    auto index = OutputFile::create(path + ".index.json");
    if (!index.ok()) return fail(index.status());
    if (Status s = index->resize(text.size()); !s.ok()) return fail(s);
    if (Status s = index->write_at(0, text.data(), text.size()); !s.ok()) return fail(s);
    if (Status s = index->flush(); !s.ok()) return fail(s);
    outputs.push_back({*std::move(index), {}, 0, 0});
  }
  for (OutputShard& output : outputs) {  // the index is last
    if (Status s = output.file.publish(); !s.ok()) return fail(s);
  }
  if (journal) journal->remove();
  outputs.clear();
  state = State::closed;
  return {};
}

SafetensorsWriter::SafetensorsWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SafetensorsWriter::~SafetensorsWriter() = default;
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter& SafetensorsWriter::operator=(SafetensorsWriter&&) noexcept = default;

Result<SafetensorsWriter> SafetensorsWriter::create(const std::string& path,
                                                    const WriteOptions& options) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->options = options;
  if (options.resume_key.empty()) {
    auto file = OutputFile::create(path);
    if (!file.ok()) return file.status();
    impl->first = *std::move(file);
  } else {
    auto journal = Journal::open(path);
    if (!journal.ok()) return journal.status();
    impl->journal = *std::move(journal);
  }
  return SafetensorsWriter(std::move(impl));
}

Status SafetensorsWriter::declare(const std::string& name, std::string_view dtype,
                                  const std::vector<std::int64_t>& shape) {
  if (Status s = impl_->require(Impl::State::declaring, "declare()"); !s.ok()) return s;
  if (name.empty() || name == kMetadataKey || !is_utf8(name)) {
    return failure(StatusCode::invalid_argument,
                   "{}: a tensor name must be UTF-8, not empty and not __metadata__; got {}",
                   impl_->path, in_quotes(name));
  }
  for (const std::int64_t dim : shape) {
    if (dim < 1) {
      return failure(StatusCode::invalid_argument,
                     "{}: tensor {}: every dimension must be at least 1; got shape [{}]",
                     impl_->path, in_quotes(name), joined(shape));
    }
  }
  const Result<std::uint64_t> bytes = tensor_bytes(name, dtype, shape, impl_->path);
  if (!bytes.ok()) return failure(StatusCode::invalid_argument, "{}", bytes.status().message());
  if (!impl_->by_name.emplace(name, impl_->tensors.size()).second) {
    return failure(StatusCode::invalid_argument, "{}: tensor {} is declared twice", impl_->path,
                   in_quotes(name));
  }
  impl_->tensors.push_back({{name, std::string(dtype), shape, 0, *bytes, 0}, 0, 0});
  return {};
}

Status SafetensorsWriter::set_metadata(const std::string& key, const std::string& value) {
  if (Status status = impl_->failed; !status.ok()) return status;
  if (!is_utf8(key) || !is_utf8(value)) {
    return failure(StatusCode::invalid_argument, "{}: metadata must be UTF-8; key {} isn't",
                   impl_->path, in_quotes(key));
  }
  if (impl_->state == Impl::State::declaring) {
    impl_->metadata[key] = value;
    return {};
  }
  if (Status s = impl_->require(Impl::State::writing, "set_metadata()"); !s.ok()) return s;
  const auto it = impl_->metadata.find(key);
  // Lengths are those of the JSON text, but equal kinds of text (a checksum) are what it is for.
  const auto width = [](const std::string& text) {
    return format_safetensors_header({}, {{"", text}}).size();
  };
  if (it == impl_->metadata.end() || width(it->second) != width(value)) {
    return failure(StatusCode::invalid_argument,
                   "{}: after begin(), metadata may only be replaced by a value of equal length; "
                   "got {} for key {}",
                   impl_->path, in_quotes(value), in_quotes(key));
  }
  it->second = value;
  return {};
}

Status SafetensorsWriter::begin() { return impl_->begin(); }

Status SafetensorsWriter::append(const std::string& name, const void* data, std::size_t bytes) {
  return impl_->append(name, data, bytes);
}

Status SafetensorsWriter::write(const std::string& name, const void* data, std::size_t bytes) {
  const auto it = impl_->by_name.find(name);
  if (it != impl_->by_name.end()) {
    const Declared& tensor = impl_->tensors[it->second];
    if (tensor.written != 0 || bytes != tensor.info.size_bytes()) {
      return failure(StatusCode::invalid_argument,
                     "{}: tensor {}: must be written once, with {} bytes; got {} after {}",
                     impl_->path, in_quotes(name), tensor.info.size_bytes(), bytes, tensor.written);
    }
  }
  return impl_->append(name, data, bytes);
}

Status SafetensorsWriter::finish() { return impl_->finish(); }

std::optional<std::uint32_t> SafetensorsWriter::written_crc(const std::string& name) const {
  const auto it = impl_->by_name.find(name);
  if (it == impl_->by_name.end() || !impl_->journal) return std::nullopt;
  const Declared& tensor = impl_->tensors[it->second];
  if (tensor.written != tensor.info.size_bytes()) return std::nullopt;
  return tensor.crc;
}

Status SafetensorsWriter::rewrite(const std::string& name) {
  if (Status s = impl_->require(Impl::State::writing, "rewrite()"); !s.ok()) return s;
  const auto it = impl_->by_name.find(name);
  if (it == impl_->by_name.end()) {
    return failure(StatusCode::not_found, "{}: tensor {} must be declared before it is rewritten",
                   impl_->path, in_quotes(name));
  }
  impl_->tensors[it->second].written = 0;
  impl_->tensors[it->second].crc = 0;
  return {};
}

void SafetensorsWriter::abandon() {
  impl_->first.reset();
  for (OutputShard& output : impl_->outputs) output.file.discard();
  // Before begin() a journal belongs to an earlier process's work, which stays.
  if (impl_->journal && !impl_->outputs.empty()) impl_->journal->remove();
  impl_->outputs.clear();
  impl_->state = Impl::State::closed;
}

}  // namespace mixgemm
