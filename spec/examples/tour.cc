// SPDX-License-Identifier: MIT
// tour IMAGE in C++: objects that close themselves, failures as exceptions.
//
//   c++ tour.cc $(pkg-config --cflags --libs qcow2) -o tour
#include <iostream>
#include <memory>
#include <qcow2.h>
#include <stdexcept>
#include <string>

namespace
{
struct Failure : std::runtime_error {
	explicit Failure(const qcow2_error &err) : std::runtime_error(err.text) {}
};

// Calls a function whose last argument is the record of its failure.
template <typename Function, typename... Arguments> void call(Function function, Arguments... arguments)
{
	qcow2_error err;
	if (function(arguments..., &err) < 0)
		throw Failure(err);
}

using Image = std::unique_ptr<qcow2_image, decltype(&qcow2_image_unref)>;

Image open(const char *path)
{
	qcow2_store *store;
	call(qcow2_store_file, path, unsigned(QCOW2_STORE_WRITE), &store);
	std::unique_ptr<qcow2_store, decltype(&qcow2_store_unref)> held(store, qcow2_store_unref);
	qcow2_image *image;
	call(qcow2_image_open, store, &image);
	return Image(image, qcow2_image_unref);
}

void print_map(qcow2_image *image)
{
	static const char *const kinds[] = {"data", "zero", "unallocated", "compressed"};
	qcow2_extent extent;
	for (uint64_t at = 0, size = qcow2_image_size(image); at < size; at += extent.length) {
		call(qcow2_image_extent, image, at, size - at, 0u, &extent);
		std::cout << at << ' ' << extent.length << ' ' << kinds[extent.kind] << '\n';
	}
}
} // namespace

int main(int argc, char **argv)
try {
	if (argc != 2)
		return 2;
	const std::string sentence = "written by a program in C++";
	const uint64_t at = 1 << 20;
	std::string back(sentence.size(), '\0');
	Image image = open(argv[1]);
	print_map(image.get());
	call(qcow2_image_begin, image.get());
	call(qcow2_image_write, image.get(), at, static_cast<const void *>(sentence.data()), sentence.size());
	call(qcow2_image_finish, image.get());
	call(qcow2_image_read, image.get(), at, static_cast<void *>(&back[0]), back.size());
	std::cout << back << '\n';
} catch (const std::exception &failure) {
	std::cerr << "tour: " << failure.what() << '\n';
	return 1;
}
