from benchmarks.compare import run

if __name__ == "__main__":
    run()
